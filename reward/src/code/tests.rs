//! What is read from completions and prompts; `reward/tests/code.rs` runs code.

use std::sync::Arc;

use arriero_buffers::Message;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::extract::{Code, blocks, sources};
use super::*;

const PYTHON: &[&str] = &["python", "py"];

fn code(completion: &str, tests: &str) -> Option<String> {
    extract(completion, PYTHON, tests).map(|code| code.text)
}

#[test]
fn blocks_are_read_as_markdown_has_them() {
    let text = "a\n```python title=x\nb = '```'\n```\n~~~~\nc\n~~~\n~~~~\n   ```{.py}\nd\n  ````\n    ```\ne\n```sh\nf";
    let found: Vec<(String, String)> =
        blocks(text).into_iter().map(|block| (block.language, block.code)).collect();
    let expected = [("python", "b = '```'\n"), ("", "c\n~~~\n"), ("py", "d\n"), ("sh", "f")];
    assert_eq!(found, expected.map(|(language, code)| (language.to_string(), code.to_string())));
}

/// What a fence is set in by comes off its lines, and no more than that; a list's item has its own margin.
#[test]
fn the_indentation_of_a_fence_is_none_of_its_code() {
    for (text, expected) in [
        ("1. Run it:\n\n   ```python\n   a = 1\n   if a:\n       b\n   ```\nDone.", "a = 1\nif a:\n    b\n"),
        ("  ```\n  a\n    b\n c\n\n   d\n  ```", "a\n  b\nc\n\n d\n"),
        ("10. Deep:\n\n    ```python\n    a = 1\n    ```\n", "a = 1\n"),
        ("- x\n  - y\n    - z\n      ~~~\n      a\n       b\n      ~~~", "a\n b\n"),
        ("- ```py\n  a\n    b\n  ```", "a\n  b\n"),
        ("* one\n\n  text\n\n     ```\n     a\n     ```", "a\n"),
        // Cut off, and less indented than its fence.
        ("1. x\n\n   ```python\n   a\nb", "a\nb"),
        ("```\n  a\n```", "  a\n"),
    ] {
        let found: Vec<String> = blocks(text).into_iter().map(|block| block.code).collect();
        assert_eq!(found, [expected], "{text}");
    }
    // Four spaces without a list are no fence, and text ends a list.
    for text in ["    ```\n    a\n    ```", "1. x\n\ntext\n\n    ```\n    a\n    ```"] {
        assert!(blocks(text).is_empty(), "{text}");
    }
}

#[test]
fn the_block_that_the_tests_mean_is_taken() {
    let with = |blocks: &[(&str, &str)]| -> String {
        blocks.iter().map(|(language, code)| format!("Text.\n```{language}\n{code}\n```\n")).collect()
    };
    let function = ("python", "def f(x): return x");
    let usage = ("python", "print(f(1))");
    for (blocks, expected) in [
        (vec![function, usage], Some(function.1)),
        (vec![("python", "def f(x): pass"), function, ("sh", "python f.py")], Some(function.1)),
        // Without a function of that name the last block of the language counts.
        (vec![("python", "def g(): pass"), usage, ("", "1")], Some(usage.1)),
        (vec![("", "x = 1"), ("sh", "ls")], Some("x = 1")),
        (vec![("sh", "def f(): echo")], None),
        (vec![("python", "  \n")], None),
    ] {
        let expected = expected.map(|code| format!("{code}\n"));
        assert_eq!(code(&with(&blocks), "assert f(1) == 1"), expected, "{blocks:?}");
    }
    // A part of a longer name is no mention.
    let text = with(&[("python", "def f(): pass"), usage]);
    assert_eq!(code(&text, "assert fib(2) == f_2"), Some(format!("{}\n", usage.1)));
}

#[test]
fn without_fences_the_whole_is_code() {
    assert_eq!(code("def f(): pass", ""), Some("def f(): pass".to_string()));
    assert_eq!(code(" \n ", ""), None);
    assert_eq!(
        extract("```rust\nfn main() {}", &[], "").map(|code| code.text),
        Some("fn main() {}".to_string())
    );
}

#[test]
fn a_prompt_is_gone_on_with_or_stands_before() {
    let prefix = "import math\ndef f(x):\n    \"\"\"Doubles.\"\"\"\n";
    let code = |text: &str, fenced| Code { text: text.to_string(), fenced };
    let goes_on = "    return 2 * x\n\nprint(f(1))\ndef g(: # cut off";
    let found = sources(&code(goes_on, false), Some(prefix));
    assert_eq!(found[0], format!("{prefix}{goes_on}"));
    assert_eq!(found[2], format!("{prefix}    return 2 * x\n\n"));
    let whole = "def f(x):\n    return 2 * x\n";
    for fenced in [false, true] {
        let apart = format!("{}\n\n{whole}", prefix.trim_end());
        assert_eq!(sources(&code(whole, fenced), Some(prefix)), [apart, whole.to_string()]);
    }
    assert_eq!(sources(&code(whole, false), None), [whole]);
}

fn tests_of(asked: &str, checks: Value) -> Result<Tests, String> {
    let prompt = Prompt { id: 3, messages: vec![Message::user(asked)], checks };
    Tests::of(&Arc::new(prompt)).map_err(|error| error.to_string())
}

#[test]
fn checks_of_the_usual_data_sets_are_read() {
    let humaneval =
        json!({"test": "def check(candidate):\n    assert candidate(1) == 2", "entry_point": "f"});
    let asked = "def f(x):\n    \"\"\"Doubles.\"\"\"\n";
    let tests = tests_of(asked, humaneval.clone()).expect("tests");
    assert_eq!((tests.count(), tests.prefix.as_deref()), (1, Some(asked)));
    let fenced = format!("Complete this:\n```python\n{asked}```\n");
    assert_eq!(tests_of(&fenced, humaneval.clone()).expect("tests").prefix.as_deref(), Some(asked));
    assert_eq!(tests_of("Double a number.", humaneval).expect("tests").prefix, None);

    let mbpp = json!({
        "test_list": ["assert f(1) == 2", "assert f(2) == 4"],
        "test_imports": ["import math"],
        "test_setup_code": "x = 1",
    });
    let tests = tests_of("Double.", mbpp).expect("tests");
    assert_eq!((tests.count(), tests.setup.as_str()), (2, "import math\nx = 1"));

    let cases = json!({"cases": [{"stdin": "1\n", "stdout": "2\n"}, {"input": "", "output": "x"}]});
    assert_eq!(tests_of("Double.", cases).expect("tests").cases.len(), 2);
}

#[test]
fn checks_that_are_none_are_errors() {
    for (checks, expected) in [
        (Value::Null, "prompt 3 has no `test_list`"),
        (json!({"test_list": []}), "prompt 3 has no `test_list`"),
        (json!({"test": "def check(candidate): pass"}), "`test` of its `checks` is wrong"),
        (json!({"test": "x", "entry_point": "f()"}), "`entry_point` of its `checks` is wrong"),
        (json!({"cases": [{"stdin": ""}]}), "missing field `stdout`"),
    ] {
        let error = tests_of("Double.", checks).expect_err("no tests");
        assert!(error.contains(expected), "{error}");
    }
}

proptest! {
    /// Whatever a model writes, the lines of code are part of it, and what is fenced comes out as it went in.
    #[test]
    fn code_is_part_of_the_completion(text in "([`~ \\na-c=]|```|\\n```\\n|python|def f)*") {
        if let Some(code) = extract(&text, PYTHON, "f") {
            prop_assert!(code.text.lines().all(|line| text.lines().any(|whole| whole.ends_with(line))));
            prop_assert!(!code.text.trim().is_empty());
        }
        let plain = text.replace(['`', '~'], "");
        prop_assume!(!plain.trim().is_empty());
        let fenced = format!("Here:\n```python\n{plain}\n```\nDone.");
        let found = extract(&fenced, PYTHON, "f").map(|code| code.text);
        prop_assert_eq!(found, Some(format!("{plain}\n")));
    }

    /// No prefix and no completion makes it panic, and the first source has both.
    #[test]
    fn sources_have_the_completion(prefix in ".{0,40}", text in "[ \\ta-z:\\n]{0,40}", fenced: bool) {
        let code = Code { text: text.clone(), fenced };
        let all = sources(&code, Some(&prefix));
        prop_assert!(all[0].ends_with(&text) && all[0].starts_with(prefix.trim_end()));
    }
}
