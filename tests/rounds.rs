//! What stages hand on to one another, and from round to round.

mod support;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use arriero_experiment::{self as experiment, Plan};
use arriero_policy::checkpoint::{Checkpoint, Weights};
use arriero_results::RunSummary;
use arriero_store::{ArmReader, SampleFilter, SampleRecord};
use support::{Workplace, fixture};

/// Prompts of a round.
const PER_ROUND: u64 = 8;

fn store(workplace: &Workplace, place: &str) -> ArmReader {
    ArmReader::open(&workplace.runs().join(place)).expect("the store")
}

/// The tiny experiment with these arms in the place of its algorithm.
fn plan(workplace: &Workplace, arms: &str, set: &[&str]) -> Plan {
    let file = workplace.path().join("arms.toml");
    let tiny = fs::read_to_string(fixture("experiments/tiny.toml")).expect("the experiment");
    fs::write(&file, tiny.split("[algorithm]").next().expect("what stands before it")).expect("written");
    let mut all = vec![format!("arm={arms}"), format!("prompts.per_round={PER_ROUND}")];
    all.extend(set.iter().map(|assignment| (*assignment).to_string()));
    experiment::load(&file, &all).unwrap_or_else(|error| panic!("{error}"))
}

fn checkpoint(summary: &RunSummary, arm: &str) -> PathBuf {
    let arm = summary.arms.iter().find(|summary| summary.arm == arm).expect("the arm");
    PathBuf::from(arm.checkpoint.as_deref().expect("a checkpoint"))
}

fn weights(folder: &Path) -> BTreeMap<String, Vec<f32>> {
    numbers(Checkpoint::open(folder).expect("a model").weights)
}

fn numbers(weights: Weights) -> BTreeMap<String, Vec<f32>> {
    weights
        .into_iter()
        .map(|(name, tensor)| (name, Vec::try_from(tensor.reshape([-1])).expect("numbers")))
        .collect()
}

/// The weighted mean by hand: a sum in f64, rounded once.
fn mean(models: &[(f64, &BTreeMap<String, Vec<f32>>)]) -> BTreeMap<String, Vec<f32>> {
    let total: f64 = models.iter().map(|(share, _)| share).sum();
    let entry = |name: &String, place: usize| {
        let shares = models.iter().map(|(share, model)| f64::from(model[name][place]) * (share / total));
        shares.fold(0.0, |sum, share| sum + share) as f32
    };
    let names = models[0].1.iter();
    names
        .map(|(name, values)| (name.clone(), (0..values.len()).map(|place| entry(name, place)).collect()))
        .collect()
}

/// The values of a metric of a stage's training, in the order of the steps.
fn metric(store: &ArmReader, stage: &str, name: &str) -> Vec<f64> {
    store.metric(stage, name).expect("numbers").into_iter().map(|point| point.value).collect()
}

/// The samples of a stage: of all its rounds, or of one.
fn samples(store: &ArmReader, stage: &str, round: Option<u64>) -> Vec<SampleRecord> {
    let filter = SampleFilter { stage: Some(stage), round, ..SampleFilter::default() };
    store.samples(&filter).expect("samples").into_iter().map(|sample| sample.record).collect()
}

/// What a sample is of within its stage.
fn place(sample: &SampleRecord) -> (u64, u64, u32) {
    (sample.address.round, sample.prompt_id, sample.sample)
}

#[test]
fn llama_3s_rounds_run_to_their_end() {
    let workplace = Workplace::new();
    let summary = workplace.run(workplace.plan_of("rounds.toml", &[]), Vec::new()).expect("the run");
    let store = store(&workplace, "rounds/llama3/5");

    // The reward model learns from the pairs of all rounds, the policy from those of its own.
    let pairs = |stage: &str, round: u64| {
        let samples = samples(&store, stage, Some(round));
        samples.iter().filter(|sample| sample.selected.as_deref() == Some("chosen")).count() as u64
    };
    let [first, second] = [0, 1].map(|round| pairs("reward_model", round));
    assert!(first > 0 && second > 0, "the experiment teaches nothing: {first} and {second} pairs");
    let steps = |trees: u64| trees.div_ceil(4) as usize;
    let losses = metric(&store, "reward_model", "loss");
    assert_eq!(losses.len(), steps(first) + steps(first + second));
    assert_eq!(metric(&store, "dpo", "loss").len(), steps(first) + steps(second));

    // Rejection sampling has a K and a temperature of its own, and the reward model chooses.
    for round in 0..2 {
        assert_eq!(samples(&store, "sft", Some(round)).len(), 80);
    }
    let for_pairs = samples(&store, "reward_model", None);
    assert_eq!(for_pairs.len(), 64);
    let mut groups: BTreeMap<(u64, u64), Vec<SampleRecord>> = BTreeMap::new();
    for sample in samples(&store, "sft", None) {
        assert!(sample.components.contains_key("score"), "not scored by the reward model: {sample:?}");
        groups.entry((sample.address.round, sample.prompt_id)).or_default().push(sample);
    }
    for group in groups.values() {
        let by_reward = |one: &&SampleRecord, other: &&SampleRecord| {
            one.reward.total_cmp(&other.reward).then(other.sample.cmp(&one.sample))
        };
        let best = group.iter().max_by(by_reward).expect("a sample").sample;
        let selected: Vec<u32> =
            group.iter().filter(|sample| sample.selected.is_some()).map(|sample| sample.sample).collect();
        assert_eq!(selected, [best], "not the best by the reward model's score");
    }

    // DPO has the pairs that the reward model learned from in this round; nothing is sampled for it.
    let for_dpo: BTreeMap<_, _> =
        samples(&store, "dpo", None).into_iter().map(|sample| (place(&sample), sample)).collect();
    let tokens = |sample: &SampleRecord| -> Vec<Vec<u32>> {
        sample.segments.iter().map(|segment| segment.segment.tokens.clone()).collect()
    };
    for own in &for_pairs {
        let other = for_dpo.get(&place(own)).expect("the same sample");
        assert_eq!((&own.text, own.reward, tokens(own)), (&other.text, other.reward, tokens(other)));
    }
    assert_eq!((pairs("dpo", 0), pairs("dpo", 1)), (first, second));

    // Its reference is what it starts from: on the first step of each round there is no margin yet.
    let margins = metric(&store, "dpo", "rewards/margins");
    for step in [0, steps(first)] {
        assert!(margins[step].abs() < 1e-4, "{margins:?}");
    }
    // The SFT steps lie between the sampling and the training of DPO.
    let staleness = metric(&store, "dpo", "staleness/max");
    let sft = metric(&store, "sft", "loss").len() as f64;
    assert!(staleness.iter().all(|&age| age > 0.0 && age <= sft), "{staleness:?}");
    assert!(metric(&store, "sft", "staleness/max").iter().all(|&age| age == 0.0));
    assert_eq!(summary.arms[0].stages, ["reward_model", "sft", "dpo"]);
    assert!(checkpoint(&summary, "llama3").join("reward_model/model.safetensors").is_file());
}

/// A stage without a learning rate leaves what it starts from.
#[test]
fn a_stage_starts_from_the_initial_weights_or_from_those_of_the_stage_before() {
    let workplace = Workplace::new();
    let stages = "[{kind=\"sft\", learning_rate=1e-3, batch_size=4}, {kind=\"sft\", learning_rate=0.0, from=\"FROM\"}]";
    let initial = weights(&fixture("tiny"));
    for (from, is_initial) in [("initial", true), ("previous", false)] {
        let arms = format!("[{{name=\"{from}\", stage={}}}]", stages.replace("FROM", from));
        let plan = plan(&workplace, &arms, &[&format!("name={from}")]);
        let summary = workplace.run(plan, Vec::new()).expect("the run");
        assert!(summary.arms[0].steps > 1);
        assert_eq!(weights(&checkpoint(&summary, from)) == initial, is_initial, "{from}");
    }
}

/// A stage between that changes nothing: the optimiser and the schedule go on as if it were not there.
#[test]
fn an_optimiser_goes_on_from_round_to_round_whatever_stands_between() {
    let workplace = Workplace::new();
    let own = "kind=\"grpo\", learning_rate=1e-3, batch_size=4";
    let idle = "{kind=\"sft\", learning_rate=0.0}";
    let arms = format!(
        "[{{name=\"alone\", stage=[{{{own}}}]}}, {{name=\"between\", stage=[{{{own}}}, {idle}]}}, \
          {{name=\"fresh\", stage=[{{{own}, optimizer=\"fresh\"}}]}}]"
    );
    let summary = workplace.run(plan(&workplace, &arms, &["rounds=2"]), Vec::new()).expect("the run");
    let [alone, between, fresh] =
        ["alone", "between", "fresh"].map(|arm| weights(&checkpoint(&summary, arm)));
    assert!(alone == between, "the moments or the schedule were lost");
    assert!(alone != fresh, "the moments make no difference");
    let rates = |arm: &str| metric(&store(&workplace, &format!("tiny/{arm}/5")), "grpo", "learning_rate");
    // Four steps, of which the first warms up: one line to 0 over both rounds, or one for each of them.
    let close = |found: &[f64], expected: &[f64]| {
        found.len() == expected.len() && found.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-9)
    };
    let found = rates("alone");
    assert!(close(&found, &[1e-3, 1e-3, 2e-3 / 3.0, 1e-3 / 3.0]), "{found:?}");
    let found = rates("fresh");
    assert!(close(&found, &[1e-3, 1e-3, 1e-3, 1e-3]), "{found:?}");
}

#[test]
fn averages_are_the_means_of_what_they_name() {
    let workplace = Workplace::new();
    let sft = |rate: &str| format!("{{kind=\"sft\", learning_rate={rate}, batch_size=4}}");
    let (one, other) = (sft("1e-3"), sft("3e-3"));
    let arms = format!(
        "[{{name=\"one\", stage=[{one}]}}, {{name=\"other\", stage=[{other}]}}, \
          {{name=\"arms\", stage=[{{kind=\"average\", of=[{{arm=\"one\"}}, {{arm=\"other\"}}], weights=[3, 1]}}]}}, \
          {{name=\"stages\", stage=[{one}, {{kind=\"sft\", learning_rate=0.0, from=\"initial\"}}, \
             {{kind=\"average\", of=[\"sft\", \"sft-2\", \"previous\"]}}, \
             {{kind=\"average\", of=[\"average\"]}}]}}]"
    );
    let summary = workplace.run(plan(&workplace, &arms, &[]), Vec::new()).expect("the run");
    let initial = weights(&fixture("tiny"));
    let [first, second] = ["one", "other"].map(|arm| weights(&checkpoint(&summary, arm)));
    assert!(first != second && first != initial);
    assert!(weights(&checkpoint(&summary, "arms")) == mean(&[(3.0, &first), (1.0, &second)]));
    let of_stages = mean(&[(1.0, &first), (1.0, &initial), (1.0, &initial)]);
    assert!(weights(&checkpoint(&summary, "stages")) == of_stages);
    // An average changes the weights once, as a step does.
    assert_eq!(summary.arms[2].steps, 1);

    // A folder of that run, the initial weights, and the last rounds of a stage: the first average has one round to take.
    let folder = checkpoint(&summary, "one");
    let arms = format!(
        "[{{name=\"path\", stage=[{{kind=\"average\", of=[\"initial\", {{path=\"{}\"}}]}}]}}, \
          {{name=\"two\", stage=[{one}]}}, \
          {{name=\"rounds\", stage=[{one}, {{kind=\"average\", of=[{{stage=\"sft\", rounds=2}}]}}]}}]",
        folder.display()
    );
    let summary =
        workplace.run(plan(&workplace, &arms, &["name=again", "rounds=2"]), Vec::new()).expect("the run");
    assert!(weights(&checkpoint(&summary, "path")) == mean(&[(1.0, &initial), (1.0, &first)]));
    let last = weights(&checkpoint(&summary, "two"));
    assert!(last != first);
    assert!(weights(&checkpoint(&summary, "rounds")) == mean(&[(1.0, &last), (1.0, &first)]));
}

#[test]
fn reward_models_are_averaged_among_themselves() {
    let workplace = Workplace::new();
    let trained = "{kind=\"reward_model\", learning_rate=1e-3, batch_size=4}";
    let arms = format!(
        "[{{name=\"one\", stage=[{trained}]}}, \
          {{name=\"mean\", stage=[{trained}, {{kind=\"reward_model\", learning_rate=0.0}}, \
            {{kind=\"average\", of=[\"reward_model\", \"reward_model-2\"]}}]}}]"
    );
    let summary = workplace.run(plan(&workplace, &arms, &[]), Vec::new()).expect("the run");
    let folder = checkpoint(&summary, "mean");
    let initial = weights(&fixture("tiny"));
    assert!(weights(&folder) == initial, "the policy has moved");
    let [one, found] = ["one", "mean"].map(|arm| {
        let folder = checkpoint(&summary, arm).join("reward_model");
        let model = Checkpoint::open_reward_model(&folder).expect("a reward model").weights;
        numbers(model.into_iter().filter(|(name, _)| initial.contains_key(name)).collect())
    });
    assert!(one != initial, "nothing was learned");
    assert!(found == mean(&[(1.0, &one), (1.0, &initial)]));
}

#[test]
fn a_model_of_another_shape_is_refused_before_anything_is_trained() {
    let workplace = Workplace::new();
    let arms = format!(
        "[{{name=\"path\", stage=[{{kind=\"average\", of=[\"initial\", {{path=\"{}\"}}]}}]}}]",
        fixture("tiny-untied").display()
    );
    let error = workplace.run(plan(&workplace, &arms, &[]), Vec::new()).expect_err("another").to_string();
    assert!(error.contains("tiny-untied cannot be averaged with the others: it"), "{error}");
    assert!(!workplace.runs().join("tiny").exists());
}
