use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

fn parse(value: Value) -> Constraint {
    serde_json::from_value(value).expect("a valid constraint")
}

/// A constraint, texts that follow it, and texts that do not.
type Case = (Value, &'static [&'static str], &'static [&'static str]);

#[rustfmt::skip]
fn cases() -> Vec<Case> {
    vec![
        (json!({"kind": "all_lowercase"}),
            &["i like tea.", "the 2 of us!", "été à paris"], &["I like tea.", "the tEa", "123 !", "ALL"]),
        (json!({"kind": "all_uppercase"}),
            &["I LIKE TEA.", "THE 2 OF US!", "ÉTÉ"], &["I Like tea.", "THE TEa", "123 !", "all"]),
        (json!({"kind": "no_comma"}),
            &["I like tea.", "a; b", "..."], &["Well, tea", ",", "1,000 teas"]),
        (json!({"kind": "keywords", "words": ["art", "new idea"]}),
            &["Art is a new idea.", "A New Idea: \"ART\"!", "new idea,art"],
            &["A part of a new idea.", "Art is new.", "An arty new idea", "Art: new ideas"]),
        (json!({"kind": "forbidden_words", "words": ["very", "great"]}),
            &["A good tea.", "everyday greatness", "fine"], &["Very fine.", "It is GREAT!", "very great"]),
        (json!({"kind": "keyword_frequency", "word": "tea", "at_least": 2}),
            &["Tea and tea.", "tea, TEA, tea", "tea-tea"], &["One tea.", "Tea and teapot and team", "steal tea"]),
        (json!({"kind": "min_words", "at_least": 3}),
            &["one two three", "It's 1 tea - yes", "a\nb\tc d"], &["one two", "one - two", "- * ... one two"]),
        (json!({"kind": "max_words", "at_most": 3}),
            &["one two three", "one - two - three", "tea"], &["a b c d", "one two three 4", "a\nb\nc\nd"]),
        (json!({"kind": "sentences", "relation": "exactly", "count": 2}),
            &["I like tea. You do not!", "Really?! Yes...", "It costs 2.50 now. \"Fine.\"", "One. and a rest"],
            &["One.", "One. Two. Three.", "just one", "2. 3."]),
        (json!({"kind": "sentences", "relation": "at_least", "count": 2}),
            &["A. B.", "A. B. C.", "(First.) *Second.*"], &["A.", "1. A.", "a.b.c"]),
        (json!({"kind": "sentences", "relation": "at_most", "count": 2}),
            &["A. B.", "A", "See a.b.c now."], &["A. B. C.", "A! B! c", "One? Two? Three? Four?"]),
        (json!({"kind": "paragraphs", "count": 2}),
            &["One.\n\nTwo.", "\nOne\nstill one\n \n\nTwo\n", "a\r\n\r\nb"], &["One.\nTwo.", "a\n\nb\n\nc", "a\n\n"]),
        (json!({"kind": "bullets", "count": 2}),
            &["* a\n* b", "Here:\n - a\n * b\nBye", "- a\n\n- b"], &["* a", "* a\n* b\n- c", "*a\n-b", "- a\n- "]),
        (json!({"kind": "numbered_list", "count": 2}),
            &["1. a\n2. b", "List:\n1) a\n 2) b.", "1. a. b\n\n2. c"],
            &["1. a", "1. a\n2. b\n3. c", "2. a\n1. b", "1. a\n1. b", "1.a\n2.b"]),
        (json!({"kind": "start_with", "phrase": "In short"}),
            &["In short, tea.", "in SHORT: tea", " \"In short tea\"", "In short."],
            &["Tea in short.", "In shorts", "Well, in short, tea"]),
        (json!({"kind": "end_with", "phrase": "That is all."}),
            &["Tea. That is all.", "\"Tea, THAT IS ALL!\"", "that is all\n"],
            &["That is all, folks.", "This that is allowed", "We ate hat is all", "Tea."]),
        (json!({"kind": "json"}),
            &["{\"a\": 1}", "```json\n{\"a\": [1, 2]}\n```", "```\n{\"a\": {}}\n```"],
            &["{}", "[1]", "\"text\"", "Here: {\"a\": 1}", "{a: 1}", "{\"a\": 1"]),
        (json!({"kind": "title"}),
            &["<<Tea>>\nIt is good.", "A text <<with a title>>", "<<<Tea>>>"],
            &["<Tea>", "<<>> tea", "<<Tea\nhouse>>", "<< Tea", ">>Tea<<"]),
        (json!({"kind": "highlighted", "count": 2}),
            &["*a* and *b*", "**a b** *c*", "* an item with *a* and **b**"],
            &["*a*", "* a\n* b\n* c", "a * b * c * d", "** **", "*a\nb* *c*"]),
        (json!({"kind": "quotation"}),
            &["\"Tea.\"", " \"a\nb\" \n", "“Tea.”"], &["Tea", "\"Tea", "\"", "\"\"", "He said \"tea\""]),
        (json!({"kind": "placeholders", "count": 2}),
            &["[name] and [place]", "[a][b][c]", "Dear [your name]: [date]"],
            &["[name]", "[] []", "[a\nb] [c]", "(a) (b)"]),
        (json!({"kind": "question"}),
            &["Tea?", "Tea. \"Really?\" ", "What?!?", "*Why?*"], &["Tea", "Why? Because.", "What?!"]),
        (json!({"kind": "exclamation"}),
            &["Tea!", "Tea. \"Really!\" ", "What?!"], &["Tea", "No! Well.", "What!?"]),
        (json!({"kind": "postscript"}),
            &["Tea.\n\nP.S. More tea.", "Tea. p.s. more", "P. S. tea"], &["Tea.", "Tea. P.S.", "PS more", "Chop.s. tea"]),
        (json!({"kind": "no_digits"}),
            &["two teas", "tea!", "one, two"], &["2 teas", "tea4two", "½ tea"]),
        (json!({"kind": "digits", "at_least": 3}),
            &["In 1999.", "1 and 2 and 3", "a1b2c3"], &["In 99.", "three", "½ 12"]),
        (json!({"kind": "capital_words", "at_least": 2}),
            &["TEA is GOOD.", "NASA's? No: NASA, \"ESA\".", "A VERY BIG cup"], &["TEA is good", "I saw A CAT", "Tea Is Good", "12 34 A"]),
        (json!({"kind": "letter_frequency", "letter": "b", "at_least": 3}),
            &["Bob bit", "bbb", "A Bubble, B"], &["Bob", "bb", "tea"]),
    ]
}

#[test]
fn hand_made_cases() {
    for (value, follow, fail) in cases() {
        let constraint = parse(value);
        assert_eq!(constraint.validate(), Ok(()));
        assert!(follow.len() >= 3 && fail.len() >= 3, "{constraint:?} needs more cases");
        for text in follow {
            assert!(constraint.check(text), "{text:?} follows {constraint:?}");
        }
        for text in fail.iter().chain(&["", " \n\t"]) {
            assert!(!constraint.check(text), "{text:?} does not follow {constraint:?}");
        }
    }
}

#[test]
fn every_kind_has_cases_and_round_trips() {
    let mut kinds: Vec<&str> = Vec::new();
    for (value, ..) in cases() {
        let constraint = parse(value.clone());
        assert_eq!(serde_json::to_value(&constraint).expect("plain data"), value);
        assert_eq!(value["kind"], constraint.kind());
        kinds.push(constraint.kind());
    }
    kinds.dedup();
    assert_eq!(kinds, Constraint::KINDS);
}

#[test]
fn unknown_kinds_and_options_are_refused() {
    for (value, ..) in cases() {
        let mut more = value.clone();
        more["colour"] = json!("red");
        assert!(serde_json::from_value::<Constraint>(more.clone()).is_err(), "{more}");
    }
    for wrong in [json!({}), json!({"kind": "no_colon"}), json!({"kind": "bullets"}), json!("no_comma")] {
        assert!(serde_json::from_value::<Constraint>(wrong.clone()).is_err(), "{wrong}");
    }
}

#[test]
fn options_out_of_range_are_named() {
    for (value, message) in [
        (
            json!({"kind": "keywords", "words": []}),
            "keywords: words is empty, but must have at least one word",
        ),
        (
            json!({"kind": "forbidden_words", "words": ["tea", " "]}),
            "forbidden_words: a word is \" \", but must have a letter or a digit",
        ),
        (
            json!({"kind": "end_with", "phrase": "?"}),
            "end_with: phrase is \"?\", but must have a letter or a digit",
        ),
        (
            json!({"kind": "sentences", "relation": "at_most", "count": 0}),
            "sentences: count is 0, but must be at least 1",
        ),
        (json!({"kind": "max_words", "at_most": 0}), "max_words: at_most is 0, but must be at least 1"),
        (
            json!({"kind": "letter_frequency", "letter": "?", "at_least": 1}),
            "letter_frequency: letter is '?', but must be a letter",
        ),
    ] {
        assert_eq!(parse(value).validate(), Err(message.to_string()));
    }
}

#[test]
fn instructions_are_sentences_with_their_options_in_them() {
    for (value, ..) in cases() {
        let constraint = parse(value.clone());
        let told: Vec<String> = (0..Constraint::PHRASINGS).map(|way| constraint.instruction(way)).collect();
        assert!(told.iter().all(|sentence| sentence.ends_with('.')), "{told:?}");
        assert!(told[0] != told[1] && told[1] != told[2] && told[0] != told[2], "{told:?}");
        assert_eq!(constraint.instruction(Constraint::PHRASINGS + 1), told[1]);
        for option in ["words", "word", "phrase", "letter"] {
            let texts = match &value[option] {
                Value::Array(words) => words.clone(),
                Value::Null => Vec::new(),
                text => vec![text.clone()],
            };
            for text in texts {
                assert!(told.iter().all(|sentence| sentence.contains(&text.to_string())), "{told:?}");
            }
        }
    }
    let bullets = Constraint::Bullets { count: 1 };
    assert_eq!(bullets.instruction(1), "Answer with exactly 1 bullet point, each starting with \"- \".");
    let words = ["sun", "moon"].map(String::from).to_vec();
    assert_eq!(
        Constraint::Keywords { words: words.clone() }.instruction(0),
        "Use the words \"sun\" and \"moon\" in your answer."
    );
    assert_eq!(Constraint::ForbiddenWords { words }.instruction(2), "Avoid the words \"sun\" or \"moon\".");
}

#[test]
fn conflicts_depend_on_the_options_where_they_must() {
    let min = |at_least| Constraint::MinWords { at_least };
    let max = |at_most| Constraint::MaxWords { at_most };
    let keywords = |word: &str| Constraint::Keywords { words: vec![word.into()] };
    let forbidden = |word: &str| Constraint::ForbiddenWords { words: vec![word.into()] };
    let sentences = |relation, count| Constraint::Sentences { relation, count };
    let start = |phrase: &str| Constraint::StartWith { phrase: phrase.into() };
    for (one, other, conflict) in [
        (min(30), max(20), true),
        (min(20), max(20), false),
        (keywords("Tea"), forbidden("tea"), true),
        (keywords("tea"), forbidden("team"), false),
        (keywords("teams 2"), Constraint::NoDigits {}, true),
        (start("Well, tea"), Constraint::NoComma {}, true),
        (start("Well"), Constraint::NoComma {}, false),
        (start("In short"), forbidden("short"), true),
        (sentences(Relation::Exactly, 1), min(25), true),
        (sentences(Relation::AtLeast, 1), min(25), false),
        (sentences(Relation::AtLeast, 9), max(40), true),
        (sentences(Relation::AtMost, 9), max(40), false),
        (Constraint::Bullets { count: 4 }, max(10), true),
        (Constraint::Bullets { count: 4 }, max(12), false),
        (Constraint::Json {}, keywords("tea"), false),
        (Constraint::Json {}, Constraint::Title {}, true),
        (Constraint::Question {}, Constraint::Exclamation {}, true),
    ] {
        assert_eq!(one.conflicts_with(&other), conflict, "{one:?} {other:?}");
        assert_eq!(other.conflicts_with(&one), conflict, "{other:?} {one:?}");
    }
}

#[test]
fn conflicts_are_symmetric_and_two_of_a_kind_conflict() {
    let all: Vec<Constraint> = cases().into_iter().map(|(value, ..)| parse(value)).collect();
    for one in &all {
        assert!(one.conflicts_with(one), "{one:?}");
        for other in &all {
            assert_eq!(one.conflicts_with(other), other.conflicts_with(one), "{one:?} {other:?}");
        }
    }
}

proptest! {
    /// A completion can be anything: no check may panic on it.
    #[test]
    fn any_text_can_be_checked(text in "[ -~\n“”é½.*\\[<>İß]{0,80}") {
        for (value, ..) in cases() {
            parse(value).check(&text);
        }
    }
}
