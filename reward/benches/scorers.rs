//! How fast completions are scored, on one core: IFEval's checks, each over a response of 100 words, and
//! hostile texts of 10 MB; and code, one completion after the other.

use std::hint::black_box;

use arriero_reward::code::{TestCase, Tests};
use arriero_reward::ifeval::{self, Instruction};
use arriero_reward::math::{equivalent, final_answer};
use arriero_reward::scorer::code::{CodeConfig, Confinement};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use serde_json::{Map, Value, json};

/// An instruction of every kind with what it needs.
fn every_kind() -> Vec<(&'static str, Value)> {
    vec![
        ("keywords:existence", json!({"keywords": ["river", "bridge"]})),
        ("keywords:frequency", json!({"keyword": "water", "frequency": 2, "relation": "at least"})),
        ("keywords:forbidden_words", json!({"forbidden_words": ["boat", "sail"]})),
        (
            "keywords:letter_frequency",
            json!({"letter": "e", "let_frequency": 20, "let_relation": "at least"}),
        ),
        ("language:response_language", json!({"language": "en"})),
        ("length_constraints:number_sentences", json!({"num_sentences": 5, "relation": "at least"})),
        ("length_constraints:number_paragraphs", json!({"num_paragraphs": 2})),
        ("length_constraints:number_words", json!({"num_words": 150, "relation": "at least"})),
        (
            "length_constraints:nth_paragraph_first_word",
            json!({"num_paragraphs": 3, "nth_paragraph": 2, "first_word": "the"}),
        ),
        ("detectable_content:number_placeholders", json!({"num_placeholders": 2})),
        ("detectable_content:postscript", json!({"postscript_marker": "P.S."})),
        ("detectable_format:number_bullet_lists", json!({"num_bullets": 3})),
        ("detectable_format:constrained_response", json!({})),
        ("detectable_format:number_highlighted_sections", json!({"num_highlights": 3})),
        ("detectable_format:multiple_sections", json!({"section_spliter": "Section", "num_sections": 3})),
        ("detectable_format:json_format", json!({})),
        ("detectable_format:title", json!({})),
        ("combination:two_responses", json!({})),
        ("combination:repeat_prompt", json!({"prompt_to_repeat": "Write about a river."})),
        ("startend:end_checker", json!({"end_phrase": "The end."})),
        (
            "change_case:capital_word_frequency",
            json!({"capital_frequency": 5, "capital_relation": "at least"}),
        ),
        ("change_case:english_capital", json!({})),
        ("change_case:english_lowercase", json!({})),
        ("punctuation:no_comma", json!({})),
        ("startend:quotation", json!({})),
    ]
}

fn instruction(id: &str, kwargs: &Value) -> Instruction {
    let kwargs: Map<String, Value> = kwargs.as_object().cloned().unwrap_or_default();
    Instruction::new(id, &kwargs).expect("a valid instruction")
}

/// About 110 words in three paragraphs with some of everything.
fn response() -> String {
    let paragraph = "The water of the river runs under the old bridge, and nobody knows how deep it is. Mr. Brown \
        says that it was built in 1820 by J. Smith. *It is beautiful* in spring when the trees are green!\n\
        * The first point is [name]\n* The second point is the weather. It's GOOD.";
    [paragraph; 2].join("\n\n")
}

fn benchmarks(criterion: &mut Criterion) {
    let kinds = every_kind();
    let response = response();

    let mut group = criterion.benchmark_group("ifeval");
    group.throughput(Throughput::Elements(kinds.len() as u64));
    // Read and compiled anew each time, as for a prompt that is seen once; strict and loose.
    group.bench_function("25 instructions of one prompt, read and checked", |bencher| {
        bencher.iter(|| {
            let instructions: Vec<Instruction> =
                kinds.iter().map(|(id, kwargs)| instruction(id, kwargs)).collect();
            ifeval::verdicts(&instructions, black_box(&response))
        })
    });
    let ready: Vec<Instruction> = kinds.iter().map(|(id, kwargs)| instruction(id, kwargs)).collect();
    group.bench_function("25 instructions of one prompt, checked", |bencher| {
        bencher.iter(|| ifeval::verdicts(&ready, black_box(&response)))
    });
    group.finish();

    let mut group = criterion.benchmark_group("math");
    group.throughput(Throughput::Elements(1));
    group.bench_function("a final answer", |bencher| {
        let text = format!("{response}\nSo the answer is \\boxed{{\\frac{{1,234}}{{2}}}}.");
        bencher.iter(|| final_answer(black_box(&text)).is_some_and(|found| equivalent("617", &found, 1e-9)))
    });
    group.finish();

    let mut group = criterion.benchmark_group("25 instructions over 10 MB");
    group.sample_size(10);
    for (name, unit) in [
        ("prose", response.as_str()),
        ("asterisks", "*"),
        ("brackets", "["),
        ("line ends", "\n"),
        ("marks", "a. "),
    ] {
        let long = unit.repeat((10 << 20) / unit.len());
        group.throughput(Throughput::Bytes(long.len() as u64));
        group.bench_function(name, |bencher| bencher.iter(|| ifeval::verdicts(&ready, black_box(&long))));
    }
    group.finish();
}

/// A completion against tests, with and without the sandbox.
fn code(criterion: &mut Criterion) {
    let completion = "```python\ndef double(x):\n    return 2 * x\nprint(double(int(input() or 1)))\n```";
    let asserts = Tests { asserts: vec!["assert double(2) == 4".to_string()], ..Tests::default() };
    let case = TestCase { stdin: "2\n".to_string(), stdout: "4".to_string() };
    let cases = Tests { cases: vec![case], ..Tests::default() };
    let mut group = criterion.benchmark_group("code");
    group.throughput(Throughput::Elements(1));
    group.sample_size(20);
    for (place, sandbox) in [("in the sandbox", Confinement::Kernel), ("without it", Confinement::None)] {
        let runner = match (CodeConfig { sandbox, ..CodeConfig::default() }).runner() {
            Ok(judge) => judge,
            Err(error) => {
                eprintln!("skipped: {error}");
                continue;
            }
        };
        for (name, tests) in [("a program", &cases), ("tests in Python", &asserts)] {
            group.bench_function(format!("{name}, {place}"), |bencher| {
                bencher.iter(|| runner.run(completion, tests).expect("it runs"))
            });
        }
    }
    group.finish();
}

criterion_group!(benches, benchmarks, code);
criterion_main!(benches);
