use std::collections::BTreeSet;

use proptest::prelude::*;

use super::draw::Rng;
use super::*;
use crate::constraint::Relation;
use crate::scorer::constraints::verdicts;

const SPLITS: [Split; 2] = [Split::Train, Split::HeldOut];

fn text(prompt: &Prompt) -> &str {
    &prompt.messages[0].content
}

fn constraints_of(prompt: &Prompt) -> Vec<Constraint> {
    serde_json::from_value(prompt.checks["constraints"].clone()).expect("the generator's own form")
}

/// An answer that follows all the constraints, if any can: what each asks for, put together, and as many
/// more words as it takes.
fn witness(constraints: &[Constraint]) -> String {
    let is_long_enough = |answer: &String| {
        let wants_words = |constraint: &&Constraint| matches!(constraint, Constraint::MinWords { .. });
        constraints.iter().filter(wants_words).all(|constraint| constraint.check(answer))
    };
    let mut answers = (0..100).map(|padding| put_together(constraints, padding));
    answers.find(is_long_enough).expect("nobody asks for more words")
}

fn put_together(constraints: &[Constraint], padding: usize) -> String {
    let (mut first, mut last) = (Vec::new(), Vec::new());
    let mut parts = 1;
    for constraint in constraints {
        match constraint {
            Constraint::Keywords { words } => first.extend(words.clone()),
            Constraint::KeywordFrequency { word, at_least } => first.extend(vec![word.clone(); *at_least]),
            Constraint::StartWith { phrase } => first.insert(0, phrase.clone()),
            Constraint::EndWith { phrase } => last.push(phrase.clone()),
            Constraint::Highlighted { count } => first.extend(vec!["*tea*".to_string(); *count]),
            Constraint::Placeholders { count } => first.extend(vec!["[name]".to_string(); *count]),
            Constraint::Digits { at_least } => first.extend(vec!["7".to_string(); *at_least]),
            Constraint::CapitalWords { at_least } => first.extend(vec!["TEA".to_string(); *at_least]),
            Constraint::LetterFrequency { letter, at_least } => {
                first.push(letter.to_string().repeat(*at_least))
            }
            Constraint::Sentences { relation: Relation::AtMost, .. } => {}
            Constraint::Sentences { count, .. }
            | Constraint::Paragraphs { count }
            | Constraint::Bullets { count }
            | Constraint::NumberedList { count } => parts = *count,
            _ => {}
        }
    }
    let has = |kind: &str| constraints.iter().any(|constraint| constraint.kind() == kind);
    first.extend(vec!["tea".to_string(); padding + 1]);
    let mut pieces = vec![first];
    pieces.resize(parts, vec!["tea".to_string()]);
    pieces[parts - 1].extend(last);
    let mark = if has("question") { "?" } else { "!" };
    let pieces = pieces.iter().enumerate().map(|(index, words)| {
        let start = match (has("bullets"), has("numbered_list")) {
            (true, _) => "- ".to_string(),
            (_, true) => format!("{}. ", index + 1),
            _ => String::new(),
        };
        format!("{start}{}{mark}", words.join(" "))
    });
    let between = match (has("paragraphs"), has("bullets") || has("numbered_list")) {
        (true, _) => "\n\n",
        (_, true) => "\n",
        _ => " ",
    };
    let mut answer = pieces.collect::<Vec<_>>().join(between);
    for (kind, before, after) in [
        ("title", "<<tea>>\n", ""),
        ("postscript", "", "\nP.S. tea"),
        ("quotation", "\"", "\""),
        ("json", "{\"tea\": \"", "\"}"),
    ] {
        if has(kind) {
            answer = format!("{before}{answer}{after}");
        }
    }
    match (has("all_lowercase"), has("all_uppercase")) {
        (true, _) => answer.to_lowercase(),
        (_, true) => answer.to_uppercase(),
        _ => answer,
    }
}

#[test]
fn there_are_many_topics_and_tasks_and_no_two_alike() {
    let topics = topics::all();
    let names: BTreeSet<String> = topics.iter().map(|topic| topic.name.to_lowercase()).collect();
    assert_eq!(names.len(), topics.len());
    assert!(topics.len() >= 200, "{}", topics.len());
    let tasks: BTreeSet<&str> = tasks::TASKS.iter().map(|task| task.text).collect();
    assert_eq!(tasks.len(), tasks::TASKS.len());
    assert!(tasks.len() >= 12 && tasks.iter().all(|task| task.matches("{}").count() == 1));
}

#[test]
fn no_topic_has_a_word_that_may_be_forbidden() {
    let forbidden =
        Constraint::ForbiddenWords { words: draw::COMMON_WORDS.iter().map(ToString::to_string).collect() };
    for topic in topics::all() {
        assert!(forbidden.check(topic.name), "{}", topic.name);
        assert!(topic.words.iter().all(|word| forbidden.check(word)), "{:?}", topic.words);
    }
}

#[test]
fn the_splits_share_no_topic_no_text_and_no_id() {
    for seed in [1, 2, 99] {
        let names = |split| -> BTreeSet<&str> {
            topics::of_split(seed, split).iter().map(|topic| topic.name).collect()
        };
        let (train, held_out) = (names(Split::Train), names(Split::HeldOut));
        assert!(train.is_disjoint(&held_out));
        assert_eq!(train.len() + held_out.len(), topics::all().len());
        assert!(train.len() > held_out.len() && held_out.len() > 80, "{} {}", train.len(), held_out.len());
    }
    assert_ne!(topics::of_split(1, Split::Train), topics::of_split(2, Split::Train));

    let config = InstructionsConfig { train: 3000, held_out: 3000, ..Default::default() };
    let prompts: Vec<Prompt> = SPLITS.iter().flat_map(|&split| generate(&config, split)).collect();
    let texts: BTreeSet<&str> = prompts.iter().map(text).collect();
    let ids: BTreeSet<u64> = prompts.iter().map(|prompt| prompt.id).collect();
    assert_eq!((texts.len(), ids.len()), (6000, 6000));
    assert_eq!((prompts[0].id, prompts[3001].id), (0, 1_000_000_001));
}

#[test]
fn every_kind_is_drawn() {
    for split in SPLITS {
        let config = InstructionsConfig { train: 2000, held_out: 2000, ..Default::default() };
        let prompts = generate(&config, split);
        let constraints = prompts.iter().flat_map(constraints_of);
        let kinds: BTreeSet<&str> = constraints.map(|constraint| constraint.kind()).collect();
        assert_eq!(kinds, KINDS.iter().copied().collect());
    }
}

#[test]
fn a_prompt_tells_its_task_and_each_constraint() {
    for prompt in generate(&InstructionsConfig::default(), Split::Train) {
        let told = |constraint: &Constraint| {
            (0..Constraint::PHRASINGS).any(|way| text(&prompt).contains(&constraint.instruction(way)))
        };
        assert!(constraints_of(&prompt).iter().all(told), "{}", text(&prompt));
        assert!(topics::all().iter().any(|topic| text(&prompt).contains(topic.name)));
        assert!(!text(&prompt).contains("{}"));
    }
}

#[test]
fn the_prompts_are_always_the_same() {
    let config = InstructionsConfig { train: 8, ..Default::default() };
    let told: Vec<String> = generate(&config, Split::Train).iter().map(|p| text(p).to_string()).collect();
    assert_eq!(told[..2], EXPECTED, "prompts have changed: results under a seed no longer compare");
}

/// The first two training prompts under the default seed.
const EXPECTED: [&str; 2] = [
    "Tell a very short story about tulips. Your answer must start and end with a double quotation mark.",
    "Write a brief introduction to microscopes. Add a title in double angular brackets, such as \
     <<my title>>. Include at least 1 digit (0-9).",
];

#[test]
fn few_kinds_give_what_can_be_given() {
    let kinds = |names: &[&str]| names.iter().map(ToString::to_string).collect::<Vec<_>>();
    let opposites = kinds(&["all_lowercase", "all_uppercase"]);
    let config = InstructionsConfig { kinds: opposites.clone(), ..Default::default() };
    let prompts = generate(&config, Split::Train);
    assert!(prompts.iter().all(|prompt| constraints_of(prompt).len() == 1));
    let texts: BTreeSet<&str> = prompts.iter().map(text).collect();
    assert_eq!(texts.len(), prompts.len());

    let config = InstructionsConfig { kinds: opposites, min_constraints: 2, ..Default::default() };
    let error = config.validate().expect_err("they cannot be combined");
    assert!(error.contains("must have 2 kinds that go together"), "{error}");
    let config = InstructionsConfig {
        kinds: kinds(&["json", "title", "keywords"]),
        min_constraints: 2,
        ..Default::default()
    };
    assert!(generate(&config, Split::HeldOut).iter().all(|prompt| constraints_of(prompt).len() == 2));
}

#[test]
fn options_out_of_range_are_named() {
    let default = InstructionsConfig::default;
    assert_eq!(default().validate(), Ok(()));
    for (config, message) in [
        (
            InstructionsConfig { train: 1_000_001, ..default() },
            "train is 1000001, but must be at most 1000000",
        ),
        (
            InstructionsConfig { max_constraints: 4, ..default() },
            "max_constraints is 4, but must be from 1 to 3",
        ),
        (
            InstructionsConfig { min_constraints: 0, ..default() },
            "min_constraints is 0, but must be from 1 to max_constraints (2)",
        ),
        (
            InstructionsConfig { min_constraints: 3, ..default() },
            "min_constraints is 3, but must be from 1 to max_constraints (2)",
        ),
    ] {
        assert_eq!(config.validate(), Err(message.to_string()));
    }
    let error = InstructionsConfig { kinds: vec!["no_commas".into()], ..default() }.validate();
    let error = error.expect_err("there is no such kind");
    assert!(error.contains("\"no_commas\"") && error.contains("nearest: no_comma,"), "{error}");
}

#[test]
fn the_configuration_round_trips_and_refuses_unknown_options() {
    let read = |text| serde_json::from_str::<InstructionsConfig>(text);
    assert_eq!(read("{}").expect("all default"), InstructionsConfig::default());
    assert!(read("{\"heldout\": 3}").is_err());
    let config = InstructionsConfig { kinds: vec!["json".into()], seed: 5, ..Default::default() };
    let written = serde_json::to_string(&config).expect("plain data");
    assert_eq!(read(&written).expect("its own form"), config);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Every combination that is drawn can be followed, and says how many constraints it has.
    #[test]
    fn a_witness_follows_every_prompt(seed: u64, min in 1usize..=3, more in 0usize..=2) {
        let max = (min + more).min(3);
        let config = InstructionsConfig {
            train: 150, held_out: 150, seed, min_constraints: min, max_constraints: max, ..Default::default()
        };
        for prompt in SPLITS.iter().flat_map(|&split| generate(&config, split)) {
            let constraints = constraints_of(&prompt);
            prop_assert!((min..=max).contains(&constraints.len()), "{}", text(&prompt));
            let answer = witness(&constraints);
            let verdicts = verdicts(&prompt, &answer).expect("the generator's own form");
            prop_assert_eq!(verdicts.len(), constraints.len());
            for verdict in verdicts {
                prop_assert!(verdict.passed, "{answer:?} does not follow {verdict:?} of {}", text(&prompt));
            }
        }
    }

    /// A shorter list is the start of a longer one.
    #[test]
    fn asking_for_more_leaves_the_first_as_they_are(seed: u64, few in 0usize..60) {
        let longer = InstructionsConfig { train: 60, held_out: 60, seed, ..Default::default() };
        let shorter = InstructionsConfig { train: few, held_out: few, ..longer.clone() };
        for split in SPLITS {
            prop_assert_eq!(&generate(&shorter, split)[..], &generate(&longer, split)[..few]);
        }
    }

    /// Also for the options that are drawn.
    #[test]
    fn conflicts_of_drawn_constraints_are_symmetric(seed: u64) {
        let mut rng = Rng::new(seed, Split::Train, 0);
        let topic = topics::all()[rng.below(200)];
        let mut draw = |kind: &&'static str| draw::constraint(kind, topic.words, &mut rng);
        let drawn: Vec<Constraint> = KINDS.iter().map(&mut draw).collect();
        for (one, kind) in drawn.iter().zip(KINDS) {
            prop_assert_eq!(one.kind(), *kind);
            prop_assert_eq!(one.validate(), Ok(()));
            for other in &drawn {
                prop_assert_eq!(one.conflicts_with(other), other.conflicts_with(one));
            }
        }
    }
}
