//! Each kind, by small responses whose verdicts follow from the official checker's code.

use serde_json::{Value, json};

use super::*;

fn instruction(id: &str, kwargs: Value) -> Instruction {
    let kwargs = kwargs.as_object().expect("an object");
    Instruction::new(id, kwargs).expect("a valid instruction")
}

#[test]
fn every_kind_accepts_and_refuses() {
    let lorem = "One two.\n\nThree four five.";
    let cases: &[(&str, Value, &[&str], &[&str])] = &[
        ("keywords:existence", json!({"keywords": ["Tea", "pot"]}), &["a teapot"], &["tea", ""]),
        (
            "keywords:frequency",
            json!({"keyword": " tea ", "frequency": 2, "relation": "at least"}),
            &["Tea teapot"],
            &["tea"],
        ),
        (
            "keywords:frequency",
            json!({"keyword": "tea", "frequency": 2, "relation": "less than"}),
            &["tea", "none"],
            &["tea tea"],
        ),
        (
            "keywords:forbidden_words",
            json!({"forbidden_words": ["tea"]}),
            &["teapot", "x_tea"],
            &["Tea!", "a tea-pot"],
        ),
        (
            "keywords:letter_frequency",
            json!({"letter": "E", "let_frequency": 2, "let_relation": "at least"}),
            &["Ee"],
            &["e"],
        ),
        // No letter: what most of the letters that the official checker draws would give.
        (
            "keywords:letter_frequency",
            json!({"letter": "#", "let_frequency": 1, "let_relation": "at least"}),
            &["Sphinx of black quartz"],
            &["# aaa ###"],
        ),
        (
            "keywords:letter_frequency",
            json!({"letter": "!", "let_frequency": 1, "let_relation": "less than"}),
            &["!!! aaa"],
            &["Sphinx of black quartz"],
        ),
        (
            "language:response_language",
            json!({"language": "sw"}),
            &["Hali ya hewa ni nzuri sana leo na tunakwenda kwenye bustani kucheza."],
            &["This is a very nice house with a large garden."],
        ),
        (
            "language:response_language",
            json!({"language": "de"}),
            &["Das ist ein sehr schönes Haus mit einem großen Garten.", "123"],
            &["This is a very nice house with a large garden."],
        ),
        (
            "length_constraints:number_sentences",
            json!({"num_sentences": 2, "relation": "at least"}),
            &["Hi. You."],
            &["Hi, Mr. You."],
        ),
        (
            "length_constraints:number_paragraphs",
            json!({"num_paragraphs": 2}),
            &["a\n***\nb", "***a***b***"],
            &["a\n\nb", "a *** *** b", "a***b***c"],
        ),
        (
            "length_constraints:number_words",
            json!({"num_words": 3, "relation": "less than"}),
            &["one two", "- - one"],
            &["it's two", "a b c"],
        ),
        (
            "length_constraints:nth_paragraph_first_word",
            json!({"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "Three"}),
            &[lorem, "a\n\n\"three, b", "a\n\nTHREE's b\n\n"],
            &["a\n\nb three", "three", "a\n\n\n\nthree", "a\n\nthree\n\nb"],
        ),
        (
            "detectable_content:number_placeholders",
            json!({"num_placeholders": 2}),
            &["[a] [b]", "[][]"],
            &["[a\n]", "[a [b]"],
        ),
        (
            "detectable_content:postscript",
            json!({"postscript_marker": "P.S."}),
            &["x p. s. y", "P.S."],
            &["PS", "P.P.S"],
        ),
        (
            "detectable_content:postscript",
            json!({"postscript_marker": "P.P.S"}),
            &["P.P.S", "p. p. s x"],
            &["P.S."],
        ),
        (
            "detectable_format:number_bullet_lists",
            json!({"num_bullets": 2}),
            &["* a\n* b", "* a\n  - b", "-a\n--b", "\n\n*a\n\n*b"],
            &["* a", "** a\n** b", "* a\n* b\n* c"],
        ),
        (
            "detectable_format:constrained_response",
            json!({}),
            &["Well. My answer is no. So", " My answer is yes."],
            &["my answer is no."],
        ),
        (
            "detectable_format:number_highlighted_sections",
            json!({"num_highlights": 2}),
            &["*a* *b*", "**a** *b*", "*a*b*c*"],
            &["**a**", "*a*", "* * *b*", "*a\n*"],
        ),
        (
            "detectable_format:multiple_sections",
            json!({"section_spliter": "Section", "num_sections": 2}),
            &["Section 1 a Section 2 b", "Section1Section 22"],
            &["SECTION 1 SECTION 2", "Section 1, Section two"],
        ),
        (
            "detectable_format:json_format",
            json!({}),
            &["{}", "```json\n[1, NaN, \"NaN\"]\n```", "1e999", "\"\\ud800\""],
            &["{'a': 1}", "x {}", "[-NaN]", ""],
        ),
        (
            "detectable_format:title",
            json!({}),
            &["<<a>>", "x <<a b>> y", "<<a>b>>"],
            &["<<>>", "<< >>", "<<a\n>>", "<a>"],
        ),
        (
            "combination:two_responses",
            json!({}),
            &["a******b", "******a******b******"],
            &["a", "a******a ", "a************b", "a******b******c"],
        ),
        (
            "combination:repeat_prompt",
            json!({"prompt_to_repeat": "Say Hi. "}),
            &[" say hi. Hi"],
            &["Hi. Say hi."],
        ),
        (
            "startend:end_checker",
            json!({"end_phrase": "The End."}),
            &["So: the end.", "\"the END.\" "],
            &["The end"],
        ),
        (
            "change_case:capital_word_frequency",
            json!({"capital_frequency": 2, "capital_relation": "at least"}),
            &["I am BIG", "I'M"],
            &["Big"],
        ),
        (
            "change_case:english_capital",
            json!({}),
            &["THIS IS A VERY SIMPLE SENTENCE IN THE ENGLISH LANGUAGE."],
            &[
                "This is a simple sentence.",
                "DAS IST EIN SEHR EINFACHER SATZ IN DEUTSCHER SPRACHE, NICHT WAHR?",
            ],
        ),
        (
            "change_case:english_lowercase",
            json!({}),
            &["this is a very simple sentence in the english language."],
            &[
                "This is a simple sentence.",
                "das ist ein sehr einfacher satz in deutscher sprache, nicht wahr?",
            ],
        ),
        ("punctuation:no_comma", json!({}), &["a; b"], &["a, b", " "]),
        ("startend:quotation", json!({}), &[" \"a\" ", "\"\""], &["\"", "a", "“a”"]),
    ];
    for (id, kwargs, followed, broken) in cases {
        let instruction = instruction(id, kwargs.clone());
        for response in *followed {
            assert!(instruction.check(response), "{id} {kwargs} should accept {response:?}");
        }
        for response in *broken {
            assert!(!instruction.check(response), "{id} {kwargs} should refuse {response:?}");
        }
    }
    let tested: std::collections::BTreeSet<&str> = cases.iter().map(|case| case.0).collect();
    assert_eq!(tested.len(), INSTRUCTION_IDS.len());
}

#[test]
fn loose_forgives_a_line_around_and_asterisks() {
    let ids = ["startend:end_checker", "startend:quotation", "punctuation:no_comma"].map(String::from);
    let kwargs: Vec<Map<String, Value>> = [json!({"end_phrase": "the end"}), json!({}), json!({})]
        .map(|v| v.as_object().cloned().unwrap_or_default())
        .into();
    let instructions = instructions(&ids, &kwargs).expect("valid");
    let loose = |response: &str| {
        verdicts(&instructions, response).iter().map(|v| (v.strict, v.loose)).collect::<Vec<_>>()
    };
    assert_eq!(loose("Sure, here:\n*\"it is the end\"*\nBye"), [(false, true), (false, true), (false, true)]);
    assert_eq!(loose("it is, the end"), [(true, true), (false, false), (false, false)]);
    assert_eq!(loose(" "), [(false, false); 3]);
}

#[test]
fn the_nulls_of_the_data_set_are_no_arguments() {
    let kwargs = json!({"num_words": 3.0, "relation": "at least", "keywords": null, "num_bullets": null});
    assert!(instruction("length_constraints:number_words", kwargs).check("a b c"));
    instruction("punctuation:no_comma", json!({"num_words": null}));
}

#[test]
fn what_is_wrong_is_named() {
    for (id, kwargs, cause) in [
        ("punctuation:no_commas", json!({}), "the nearest is \"punctuation:no_comma\""),
        ("punctuation:no_comma", json!({"num_words": 3}), "has no arguments"),
        ("length_constraints:number_words", json!({"relation": "at least"}), "num_words is missing"),
        (
            "length_constraints:number_words",
            json!({"num_words": 2.5, "relation": "at least"}),
            "whole number",
        ),
        ("length_constraints:number_words", json!({"num_words": 3, "relation": "at most"}), "\"less than\""),
        (
            "length_constraints:number_words",
            json!({"num_words": 0, "relation": "less than"}),
            "nothing is less",
        ),
        ("length_constraints:number_words", json!({"num_words": 1, "relation": "at least", "n": 1}), "\"n\""),
        ("keywords:existence", json!({"keywords": []}), "list of texts"),
        ("keywords:existence", json!({"keywords": ["(a"]}), "regular expression"),
        (
            "keywords:letter_frequency",
            json!({"letter": "ab", "let_frequency": 1, "let_relation": "at least"}),
            "one character",
        ),
        ("language:response_language", json!({"language": "tlh"}), "cannot be told"),
        (
            "length_constraints:nth_paragraph_first_word",
            json!({"num_paragraphs": 2, "nth_paragraph": 3, "first_word": "a"}),
            "from 1 to",
        ),
    ] {
        let error = Instruction::new(id, kwargs.as_object().expect("an object")).expect_err("wrong");
        assert!(error.contains(cause), "{id} {kwargs}: {error}");
    }
    let error = instructions(&["punctuation:no_comma".to_string()], &[]).expect_err("no kwargs");
    assert!(error.contains("1 entries") && error.contains("kwargs has 0"), "{error}");
}
