//! Checks on real data that are not in the repository; each is skipped unless a variable names its
//! file.
//!
//! - `ARRIERO_IFEVAL_SAMPLE`: JSON lines of IFEval prompts (`instruction_id_list`, `kwargs`) with a
//!   `response` and the official checker's verdicts for each instruction, `strict` and `loose`;
//! - `ARRIERO_GSM8K_SAMPLE`: JSON lines of GSM8K rows (`answer`) with a `completion` that is right or
//!   not (`correct`).

use std::collections::BTreeMap;

use arriero_reward::ifeval;
use arriero_reward::math::{equivalent, final_answer};
use serde_json::{Map, Value};

fn rows(variable: &str) -> Option<Vec<Value>> {
    let Some(path) = std::env::var_os(variable) else {
        eprintln!("skipped: {variable} names no file");
        return None;
    };
    let text = std::fs::read_to_string(path).expect("the file can be read");
    Some(text.lines().map(|line| serde_json::from_str(line).expect("a line of JSON")).collect())
}

fn bools(value: &Value) -> Vec<bool> {
    value.as_array().expect("a list").iter().map(|verdict| verdict == &Value::Bool(true)).collect()
}

/// Kinds whose verdict hangs on which language it is, or on where a sentence ends.
fn is_fuzzy(id: &str) -> bool {
    matches!(
        id,
        "language:response_language"
            | "change_case:english_capital"
            | "change_case:english_lowercase"
            | "length_constraints:number_sentences"
    )
}

#[test]
fn ifeval_verdicts_are_the_official_ones() {
    let Some(rows) = rows("ARRIERO_IFEVAL_SAMPLE") else { return };
    // Of each kind: verdicts, and how many agree.
    let mut kinds: BTreeMap<String, (usize, usize)> = BTreeMap::new();
    for row in &rows {
        let ids: Vec<String> = serde_json::from_value(row["instruction_id_list"].clone()).expect("ids");
        let kwargs: Vec<Map<String, Value>> = serde_json::from_value(row["kwargs"].clone()).expect("kwargs");
        let instructions = ifeval::instructions(&ids, &kwargs).expect("valid instructions");
        let response = row["response"].as_str().expect("a text");
        let expected = bools(&row["strict"]).into_iter().zip(bools(&row["loose"]));
        for (verdict, expected) in ifeval::verdicts(&instructions, response).into_iter().zip(expected) {
            let agreed = [(verdict.strict, expected.0), (verdict.loose, expected.1)];
            let count = kinds.entry(verdict.id.clone()).or_default();
            count.0 += 2;
            count.1 += agreed.iter().filter(|(found, expected)| found == expected).count();
            if agreed.iter().any(|(found, expected)| found != expected) {
                eprintln!("key {}: {} is {verdict:?}, official {expected:?}", row["key"], verdict.id);
            }
        }
    }
    let total = |fuzzy: bool| {
        let chosen = kinds.iter().filter(|(id, _)| is_fuzzy(id) == fuzzy);
        chosen.fold((0, 0), |sum, (_, count)| (sum.0 + count.0, sum.1 + count.1))
    };
    for (id, (verdicts, equal)) in &kinds {
        eprintln!("{equal:4} of {verdicts:4} {id}");
    }
    let (verdicts, equal) = total(false);
    eprintln!("{equal} of {verdicts} equal; with language and sentences also {:?}", total(true));
    assert!(verdicts > 0 && equal as f64 / verdicts as f64 >= 0.99);
}

/// Ways to get a number wrong.
fn corruptions(answer: &str) -> Vec<String> {
    let plain = answer.replace(',', "");
    let number: f64 = plain.parse().expect("a number");
    let digits: Vec<char> = plain.chars().collect();
    let mut wrong = vec![
        (number + 1.0).to_string(),
        (number - 1.0).to_string(),
        (number * 10.0 + 3.0).to_string(),
        (number + 0.5).to_string(),
        (number + 0.01).to_string(),
        format!("{plain}0{}", if number == 0.0 { "1" } else { "" }),
        format!("1{plain}"),
        format!("{plain}/7"),
        format!("\\frac{{{plain}}}{{3}} + 1"),
        format!("{plain}, {}", number + 1.0),
        format!("{plain}x"),
        format!("\\sqrt{{{plain}}} + 0.3"),
        "I do not know".to_string(),
    ];
    if number != 0.0 {
        wrong.extend([format!("-{plain}"), format!("{}", number / 10.0), (number * 2.0).to_string()]);
    }
    if let [.., second, last] = digits[..]
        && second != last
    {
        let swapped: String = digits[..digits.len() - 2].iter().chain([&last, &second]).collect();
        wrong.push(swapped);
        wrong.push(digits[..digits.len() - 1].iter().collect());
    }
    wrong
}

#[test]
fn gsm8k_answers_are_right_and_corrupted_ones_wrong() {
    let Some(rows) = rows("ARRIERO_GSM8K_SAMPLE") else { return };
    let mut wrong = 0;
    for row in &rows {
        let solution = row["answer"].as_str().expect("a text");
        let gold = final_answer(solution).expect("GSM8K marks its answers");
        let right =
            |completion: &str| final_answer(completion).is_some_and(|found| equivalent(&gold, &found, 1e-9));
        let completion = row["completion"].as_str().expect("a text");
        assert_eq!(Value::Bool(right(completion)), row["correct"], "{gold}: {completion}");
        assert!(right(solution), "{solution}");
        for form in [
            "#### {}",
            "\\boxed{{}}",
            "The answer is {}.",
            "So it costs ${}.",
            "It is {}.00 in all",
            "{} apples",
        ] {
            assert!(right(&form.replacen("{}", &gold, 1).replace("{{}}", &gold)), "{form}: {gold}");
        }
        for corruption in corruptions(&gold) {
            for completion in [format!("#### {corruption}"), format!("\\boxed{{{corruption}}}")] {
                wrong += 1;
                assert!(!right(&completion), "{gold}: {completion}");
            }
        }
    }
    eprintln!("{} rows; all of {wrong} corrupted answers are wrong", rows.len());
}
