//! What holds of every rule; and what the tests of the rules, which stand in their files, begin with.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::experience::{Completion, Group, Score};
use crate::prompt::{Message, Prompt};

/// A group with these rewards.
pub(super) fn scored(rewards: &[f32]) -> ScoredGroup {
    let completion = |sample: u32| {
        let mut completion = Completion { finish: Finish::EndOfTurn, ..Completion::empty(sample) };
        completion.push(10 + sample, -0.5, -0.5, 0);
        completion.push(2, -0.25, -0.25, 0);
        completion
    };
    let prompt = Prompt { id: 4, messages: vec![Message::user("hi")], checks: serde_json::Value::Null };
    ScoredGroup {
        group: Group {
            prompt: Arc::new(prompt),
            prompt_tokens: vec![1, 5],
            completions: (0..rewards.len() as u32).map(completion).collect(),
        },
        scores: rewards.iter().map(|&reward| Score { reward, components: BTreeMap::new() }).collect(),
    }
}

/// The samples of the branches.
pub(super) fn samples(selection: &Selection) -> Vec<u32> {
    accepted(selection).branches.iter().map(|branch| branch.sample).collect()
}

pub(super) fn accepted(selection: &Selection) -> &Tree {
    match selection {
        Selection::Accepted(tree) => tree,
        Selection::Dropped(reason) => panic!("dropped: {reason}"),
    }
}

pub(super) fn apply(rewards: &[f32], rule: impl Into<SelectionRule>, config: &SelectionConfig) -> Selection {
    select(&scored(rewards), rule.into(), config, |token| token == 2)
}

/// Bounds that drop every group to which they apply.
pub(super) fn unreachable_bounds() -> SelectionConfig {
    SelectionConfig { min_reward: 9.0, min_margin: 9.0, ..SelectionConfig::default() }
}

#[test]
fn filters_leave_completions_out_of_the_choice() {
    let mut scored = scored(&[1.0, 1.0, 0.5, 0.25]);
    let first = &mut scored.group.completions[0];
    first.segments.clear();
    for token in [7, 7, 7, 2] {
        first.push(token, -1.0, -1.0, 0);
    }
    scored.group.completions[1].finish = Finish::Length;
    scored.group.completions[3].segments = scored.group.completions[2].segments.clone();
    let kept =
        |config: &SelectionConfig, rule: SelectionRule| samples(&select(&scored, rule, config, |_| false));
    let (best_of_n, pair) = (BestOfN.into(), BestAgainstWorst.into());
    let all = SelectionConfig { keep_best: 9, ..SelectionConfig::default() };
    assert_eq!(kept(&all, best_of_n), [0, 1, 2, 3]);
    let short = SelectionConfig { max_tokens: Some(3), ..all.clone() };
    assert_eq!(kept(&short, best_of_n), [1, 2, 3]);
    let whole = SelectionConfig { drop_truncated: true, ..short.clone() };
    assert_eq!(kept(&whole, best_of_n), [2, 3]);
    let once = SelectionConfig { drop_duplicates: true, ..short.clone() };
    assert_eq!(kept(&once, best_of_n), [1, 2]);
    assert_eq!(kept(&once, pair), [1, 2]);
    // Whole groups are whole.
    let group = WholeGroup { least: 2, drop_equal: false }.into();
    assert_eq!(kept(&SelectionConfig { max_tokens: Some(1), ..all.clone() }, group), [0, 1, 2, 3]);
    let nothing = SelectionConfig { max_tokens: Some(1), ..all };
    let selection = select(&scored, best_of_n, &nothing, |_| false);
    assert_eq!(selection, Selection::Dropped("all_completions_filtered"));
}

#[test]
fn a_response_that_the_limit_cut_short_says_so() {
    let mut scored = scored(&[0.0, 1.0]);
    scored.group.completions[1].finish = Finish::Length;
    let rule = WholeGroup { least: 2, drop_equal: false }.into();
    let selection = select(&scored, rule, &SelectionConfig::default(), |_| false);
    let truncated = accepted(&selection).branches.iter().map(|branch| branch.truncated);
    assert_eq!(truncated.collect::<Vec<_>>(), [false, true]);
}

#[test]
fn a_group_without_use_is_dropped_with_its_reason() {
    let config = SelectionConfig { min_reward: 0.5, min_margin: 0.4, ..SelectionConfig::default() };
    let (best_of_n, pair) = (SelectionRule::from(BestOfN), SelectionRule::from(BestAgainstWorst));
    for (rewards, rule, reason) in [
        (&[][..], pair, "no_usable_completion"),
        (&[f32::NAN], pair, "no_usable_completion"),
        (&[0.4, 0.1], best_of_n, "best_below_min_reward"),
        (&[0.6, 0.6], pair, "all_rewards_equal"),
        (&[0.6, 0.3], pair, "margin_below_min_margin"),
    ] {
        assert_eq!(apply(rewards, rule, &config), Selection::Dropped(reason));
    }
}

fn is_snake_case(word: &str) -> bool {
    !word.is_empty() && word.chars().all(|letter| letter.is_ascii_lowercase() || letter == '_')
}

/// Every rule of the registry, and those whose options change what they do once more.
fn rules() -> Vec<SelectionRule> {
    let mut rules = SelectionRule::all();
    rules.extend([
        Unpaired { desirable_reward: 0.75 }.into(),
        WholeGroup { least: 3, drop_equal: true }.into(),
        SelectionRule::from(AgainstRivals { reference_weight: 0.5, keep_rivals: false }),
    ]);
    rules
}

#[test]
fn a_rule_is_known_by_its_name() {
    let rules = SelectionRule::all();
    let names: Vec<&str> = rules.iter().map(|rule| rule.name()).collect();
    assert_eq!(names, SelectionRule::NAMES);
    assert_eq!(names.iter().collect::<BTreeSet<_>>().len(), names.len(), "a name stands twice: {names:?}");
    for rule in self::rules() {
        assert!(is_snake_case(rule.name()), "{rule:?}");
        let written = serde_json::to_value(rule).expect("plain data");
        assert_eq!(written["rule"], rule.name());
        assert_eq!(serde_json::from_value::<SelectionRule>(written).expect("it is the same"), rule);
    }
    let unknown = serde_json::json!({ "rule": "worst_of_n" });
    assert!(serde_json::from_value::<SelectionRule>(unknown).is_err());
}

/// What the rule makes of a row with two answers "a" and "b", and perhaps a third, "c".
fn learned(rule: SelectionRule, row: &RowContent<'_>) -> String {
    let words = |messages: &[Message]| messages[0].content.clone();
    match rule.example(row) {
        None => "-".to_string(),
        Some(TrainingExample::Responses(responses)) => {
            let responses =
                responses.iter().map(|(response, reward)| format!("{} {reward}", words(response)));
            responses.collect::<Vec<_>>().join(", ")
        }
        Some(TrainingExample::Conversation(messages)) => format!("all of {}", words(messages)),
        Some(TrainingExample::Text(text)) => format!("all of {text}"),
        Some(TrainingExample::Nothing(reason)) => format!("not: {reason}"),
    }
}

#[test]
fn every_rule_says_what_it_learns_from_every_type_of_row() {
    let message = |content: &str| [Message { role: crate::Role::Assistant, ..Message::user(content) }];
    let (a, b, c) = (message("a"), message("b"), message("c"));
    let rows = [
        RowContent::Completion(&a),
        RowContent::Preference { chosen: &a, rejected: &b, edited: None },
        RowContent::Preference { chosen: &a, rejected: &b, edited: Some(&c) },
        RowContent::Unpaired { completion: &a, label: true },
        RowContent::Unpaired { completion: &a, label: false },
        RowContent::Conversation(&a),
        RowContent::Text("t"),
    ];
    let sft = ["a 1", "a 1", "c 1", "a 1", "not: undesirable", "all of a", "all of t"];
    let pair = ["-", "a 1, b 0", "a 1, b 0", "-", "-", "-", "-"];
    let ranking = ["-", "a 1, b 0", "c 2, a 1, b 0", "-", "-", "-", "-"];
    let unpaired = ["-", "a 0.25, b -0.75", "a 0.25, b -0.75", "a 0.25", "a -0.75", "-", "-"];
    for (rule, expected) in [
        (BestOfN.into(), sft),
        (Everything.into(), sft),
        (BestAgainstWorst.into(), pair),
        (Ranking.into(), ranking),
        (Unpaired { desirable_reward: 0.25 }.into(), unpaired),
        (WholeGroup::default().into(), ["-"; 7]),
        (GreedyBaseline.into(), ["-"; 7]),
        (SelectionRule::from(AgainstRivals::default()), ["-"; 7]),
    ] {
        assert_eq!(rows.map(|row| learned(rule, &row)), expected, "{rule:?}");
        assert_eq!(rule.takes_rows(), expected != ["-"; 7], "{rule:?}");
    }
}

#[test]
fn an_outline_has_a_branch_a_response() {
    let rewards = |example: TrainingExample<'_>| {
        let tree = example.outline()?;
        Some(tree.branches.iter().map(|branch| branch.reward).collect::<Vec<_>>())
    };
    let responses = TrainingExample::Responses(vec![(&[], 2.0), (&[], 0.0)]);
    assert_eq!(rewards(responses), Some(vec![2.0, 0.0]));
    assert_eq!(rewards(TrainingExample::Text("t")), Some(vec![1.0]));
    assert_eq!(rewards(TrainingExample::Nothing("undesirable")), None);
}

fn groups() -> impl Strategy<Value = ScoredGroup> {
    let few = [0.0, 0.5, 0.5, 1.0, -1.0, f32::NAN, f32::INFINITY, f32::NEG_INFINITY];
    let finish = prop::sample::select(vec![Finish::EndOfTurn, Finish::Stop, Finish::Length]);
    let one = (prop::sample::select(few.to_vec()), prop::collection::vec(1u32..3, 0..4), finish);
    prop::collection::vec(one, 0..9).prop_map(|all| {
        let rewards: Vec<f32> = all.iter().map(|(reward, ..)| *reward).collect();
        let mut scored = scored(&rewards);
        for (completion, (_, tokens, finish)) in scored.group.completions.iter_mut().zip(all) {
            *completion = Completion { finish, ..Completion::empty(completion.sample) };
            let version = completion.sample;
            tokens.into_iter().for_each(|token| completion.push(token, -0.5, -0.5, version));
        }
        scored
    })
}

fn bounds() -> impl Strategy<Value = SelectionConfig> {
    let rewards = prop::sample::select(vec![f32::NEG_INFINITY, 0.0, 0.75]);
    let longest = prop::option::of(1usize..4);
    (rewards, 0usize..2, 1usize..4, longest, any::<bool>(), any::<bool>()).prop_map(
        |(min_reward, min_margin, keep_best, max_tokens, drop_truncated, drop_duplicates)| SelectionConfig {
            min_reward,
            min_margin: min_margin as f32,
            keep_best,
            max_tokens,
            drop_truncated,
            drop_duplicates,
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1024))]

    /// Whatever comes, each rule does one of two things. It drops the group for a reason with a name. Or it chooses
    /// usable completions of the group, each once, and of equals it does not leave out the first.
    #[test]
    fn every_rule_chooses_what_is_usable_once_and_the_first_of_equals(scored in groups(), config in bounds()) {
        for rule in rules() {
            let completions = &scored.group.completions;
            let tree = match select(&scored, rule, &config, |token| token == 2) {
                Selection::Accepted(tree) => tree,
                Selection::Dropped(reason) => {
                    prop_assert!(is_snake_case(reason), "{rule:?}: {reason}");
                    continue;
                }
            };
            let samples = rule.samples_of(completions.len());
            let is_fit = |index: usize| {
                completions[index].drawn_len() > 0
                    && (scored.scores[index].reward.is_finite() || !rule.reads_rewards())
                    && (!rule.reads_bounds() || config.lets_through(completions, index))
            };
            // Beside a rival that is of no use none is.
            let is_usable = |index: usize| {
                let beside = rule.rivals().map(|_| if index < samples { index + samples } else { index - samples });
                is_fit(index) && beside.is_none_or(|beside| beside < 2 * samples && is_fit(beside))
            };
            let chosen: Vec<usize> = tree.branches.iter().map(|branch| branch.sample as usize).collect();
            prop_assert!(!chosen.is_empty(), "{rule:?}");
            prop_assert_eq!(chosen.iter().collect::<BTreeSet<_>>().len(), chosen.len(), "{:?}", rule);
            for (position, (&index, branch)) in chosen.iter().zip(&tree.branches).enumerate() {
                prop_assert!(index < completions.len() && is_usable(index), "{rule:?}: {index}");
                let completion = &completions[index];
                prop_assert_eq!(&branch.tokens, &completion.tokens().collect::<Vec<_>>());
                prop_assert_eq!(branch.reward.to_bits(), scored.scores[index].reward.to_bits());
                prop_assert_eq!(branch.truncated, completion.finish == Finish::Length);
                let behaviour: Vec<f32> = completion.logps().filter(|_| index < samples).collect();
                prop_assert_eq!(&branch.behaviour_logps, &behaviour, "{:?}: {}", rule, index);
                prop_assert!(is_snake_case(rule.role(position)), "{rule:?}");
                let is_equal = |other: usize| scored.scores[other].reward == branch.reward;
                let earlier = (0..index).find(|&other| {
                    is_equal(other) && is_usable(other) && !chosen.contains(&other)
                });
                prop_assert_eq!(earlier, None, "{:?} chose {:?}", rule, chosen);
            }
            let versions = chosen.iter().flat_map(|&index| completions[index].weight_versions());
            prop_assert_eq!(tree.version, versions.min());
            prop_assert_eq!(tree.greedy_reward.is_some(), rule.wants_greedy());
            prop_assert!(tree.rival_rewards.is_empty() || tree.rival_rewards.len() == chosen.len());
        }
    }

    /// However many samples there are, a group has its yardsticks beside them.
    #[test]
    fn samples_and_yardsticks_are_told_apart(samples in 0usize..100) {
        for rule in rules() {
            prop_assert_eq!(rule.samples_of(rule.completions(samples)), samples, "{:?}", rule);
        }
    }
}
