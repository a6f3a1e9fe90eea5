//! Which tokens of written conversations carry loss, under templates that make it hard to tell.

use std::fs;
use std::path::Path;

use arriero_buffers::{Message, Role};
use arriero_policy::checkpoint::Checkpoint;
use arriero_policy::tokenizer::Tokenizer;
use arriero_policy::written::{self, Marked};
use serde_json::{Value, json};

/// The tiny model's tokenizer with another template, and these tokens to end a turn.
fn tokenizer(template: &str, eos_ids: Value) -> Tokenizer {
    let tiny = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/tiny");
    let folder = tempfile::tempdir().expect("a folder");
    for file in fs::read_dir(&tiny).expect("the fixture") {
        let file = file.expect("a file").path();
        fs::copy(&file, folder.path().join(file.file_name().expect("a name"))).expect("copied");
    }
    let edit = |name: &str, key: &str, value: Value| {
        let path = folder.path().join(name);
        let mut json: Value = serde_json::from_slice(&fs::read(&path).expect("read")).expect("JSON");
        json[key] = value;
        fs::write(&path, json.to_string()).expect("written");
    };
    edit("tokenizer_config.json", "chat_template", json!(template));
    edit("generation_config.json", "eos_token_id", eos_ids.clone());
    edit("config.json", "eos_token_id", eos_ids);
    Checkpoint::inspect(folder.path()).expect("a model").1
}

fn system_user() -> Vec<Message> {
    vec![Message::new(Role::System, "Be kind"), Message::user("Add 2 and 2")]
}

fn answer(text: &str) -> Vec<Message> {
    vec![Message::assistant(text)]
}

fn whole(tokenizer: &Tokenizer) -> Result<Marked, String> {
    let messages = [system_user(), answer("4")].concat();
    written::conversation(tokenizer, &messages, &[Role::Assistant]).map_err(|error| error.to_string())
}

fn pair(tokenizer: &Tokenizer) -> Result<(Vec<u32>, Vec<Marked>), String> {
    let (chosen, rejected) = (answer("4"), answer("5"));
    written::completions(tokenizer, &system_user(), &[&chosen, &rejected], &[Role::Assistant])
        .map_err(|error| error.to_string())
}

/// The text of the tokens with loss.
fn learned(tokenizer: &Tokenizer, marked: &Marked) -> String {
    let with_loss = marked.tokens.iter().zip(&marked.carries_loss).filter(|(_, loss)| **loss);
    tokenizer.decode(&with_loss.map(|(token, _)| *token).collect::<Vec<_>>(), false).expect("decoded")
}

/// Writes the system message into the last turn of the user, where that is the last turn of all.
const SYSTEM_LAST: &str = "{{- bos_token }}{%- set s = messages[0].content %}{%- for m in messages[1:] %}\
    {%- if m.role == 'user' and loop.last %}{{- '[INST] ' + s + '\\n\\n' + m.content + '[/INST]' }}\
    {%- elif m.role == 'user' %}{{- '[INST] ' + m.content + '[/INST]' }}\
    {%- else %}{{- ' ' + m.content + eos_token }}{%- endif %}{%- endfor %}";

#[test]
fn a_prompt_that_is_written_otherwise_once_it_is_answered_is_refused() {
    let counted =
        "{{ messages|length }} turns\n{% for m in messages %}{{ m.content }}{{ eos_token }}{% endfor %}";
    for template in [SYSTEM_LAST, counted] {
        let tokenizer = tokenizer(template, json!(2));
        for error in [whole(&tokenizer).expect_err("refused"), pair(&tokenizer).expect_err("refused")] {
            assert!(
                error.contains("it shows the prompt (2 turns) in another way where it is answered"),
                "{error}"
            );
        }
    }
}

#[test]
fn words_of_the_user_that_come_with_the_answer_are_refused() {
    // Until it is answered, the question is not shown at all.
    let late = "{{ bos_token }}{% for m in messages %}{% if m.role == 'assistant' %}\
                Q: {{ messages[loop.index0 - 1].content }} A: {{ m.content }}{{ eos_token }}{% endif %}{% endfor %}";
    let tokenizer = tokenizer(late, json!(2));
    for error in [whole(&tokenizer).expect_err("refused"), pair(&tokenizer).expect_err("refused")] {
        assert!(error.contains("it shows turn 2, which is of role user, among the words"), "{error}");
    }
}

#[test]
fn a_turn_that_does_not_end_is_refused() {
    let endless = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}\
                   {% if add_generation_prompt %}assistant: {% endif %}";
    let tokenizer = tokenizer(endless, json!(2));
    for error in [whole(&tokenizer).expect_err("refused"), pair(&tokenizer).expect_err("refused")] {
        assert!(error.contains("no token that ends a turn"), "{error}");
    }
}

#[test]
fn a_header_that_opens_thoughts_is_the_prompts_and_carries_no_loss() {
    let thoughts = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}\
                    {% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}";
    let tokenizer = tokenizer(thoughts, json!(2));
    assert_eq!(learned(&tokenizer, &whole(&tokenizer).expect("written")), "4<|im_end|>\n");
    let (prompt, answers) = pair(&tokenizer).expect("written");
    assert!(tokenizer.decode(&prompt, false).expect("decoded").ends_with("assistant\n"));
    assert_eq!(learned(&tokenizer, &answers[1]), "5<|im_end|>\n");
}

#[test]
fn generation_marks_say_what_the_model_wrote() {
    let marked = |before: &str, behind: &str| {
        format!(
            "{{% for m in messages %}}<|im_start|>{{{{ m.role }}}}\n{{% if m.role == 'assistant' %}}{before}{{% generation \
             %}}{{{{ m.content }}}}{behind}\n{{% else %}}{{{{ m.content }}}}<|im_end|>\n{{% endif %}}{{% endfor %}}\
             {{% if add_generation_prompt %}}<|im_start|>assistant\n{{% endif %}}"
        )
    };
    let tokenizer_of = |before, behind| tokenizer(&marked(before, behind), json!(2));
    // What the template writes in front of the marks and behind them carries no loss.
    let right = tokenizer_of("[a] ", "<|im_end|>{% endgeneration %}");
    assert_eq!(learned(&right, &whole(&right).expect("written")), "4<|im_end|>");
    for answer in &pair(&right).expect("written").1 {
        assert!(["4<|im_end|>", "5<|im_end|>"].contains(&&*learned(&right, answer)));
    }
    let open = tokenizer_of("", "{% endgeneration %}<|im_end|>");
    assert!(whole(&open).expect_err("refused").contains("no token that ends a turn"));
    let empty =
        tokenizer("{% generation %}{% endgeneration %}{{ messages[-1].content }}<|im_end|>", json!(2));
    assert!(whole(&empty).expect_err("refused").contains("stand around nothing"));
    let greedy = tokenizer(
        "{{ bos_token }}{% generation %}{% for m in messages %}{{ m.content }}<|im_end|>{% endfor %}{% endgeneration %}",
        json!(2),
    );
    assert!(whole(&greedy).expect_err("refused").contains("it shows turn 1, which is of role system"));
}

#[test]
fn the_end_token_is_the_tokenizers_and_not_the_first_of_those_that_stop() {
    let template = "{% for m in messages %}{{ m.content }}{{ eos_token }}{% endfor %}";
    let tokenizer = tokenizer(template, json!([0, 2]));
    assert_eq!(tokenizer.eos_ids(), [0, 2]);
    assert_eq!((tokenizer.eos_text(), tokenizer.eos_id()), ("<|im_end|>", Some(2)));
    assert_eq!(written::text(&tokenizer, "a").expect("written").tokens.last(), Some(&2));
    assert_eq!(learned(&tokenizer, &whole(&tokenizer).expect("written")), "4<|im_end|>");
}

#[test]
fn a_token_across_the_end_of_a_plain_prompt_is_the_answers_and_nothing_before_it() {
    let tokenizer = tokenizer("{{ messages }}", json!(2));
    let (prompt, answers) = written::plain_completions(&tokenizer, "x t", &["he", "o"]).expect("written");
    assert_eq!(tokenizer.decode(&prompt, false).expect("decoded"), "x");
    // " the" is one token, " t" and "o" are two.
    assert_eq!(learned(&tokenizer, &answers[0]), " the<|im_end|>");
    assert_eq!(learned(&tokenizer, &answers[1]), "o<|im_end|>");
}
