//! A learner whose state is written and read goes on as if nothing had been: it is stopped before every unit of its work, and
//! what it comes to is compared with what one came to that went through.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use arriero_buffers::{Branch, ExperienceBuffer, Queue, Tree};
use arriero_experiment::{ArmStage, Computes, Plan};
use arriero_policy::checkpoint::{Checkpoint, save_weights};
use arriero_policy::snapshot::WeightCell;
use ractor::Actor;

use super::*;
use crate::context::RewardModelCell;
use crate::faults::Faults;
use crate::groups::{InitialGroups, StageGroups};
use crate::job::PortionJob;
use crate::record::Record;
use crate::report::Report;
use crate::shutdown::Shutdown;

/// Whom the learner reports to.
struct Listener;

impl Actor for Listener {
    type Msg = Report;
    type State = ();
    type Arguments = ();

    async fn pre_start(&self, _myself: ActorRef<Report>, (): ()) -> Result<(), ActorProcessingErr> {
        Ok(())
    }
}

fn tiny() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/tiny")
}

/// Two rounds on the tiny model.
fn plan(arm: &str) -> Arc<Plan> {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("resumed.toml");
    let text = format!(
        "seed = 5\nrounds = 2\n\
         [model]\npath = \"{}\"\ndevice = \"cpu\"\ndtype = \"f32\"\n\
         [prompts]\nkind = \"instructions\"\ntrain = 8\nheld_out = 2\nmax_constraints = 1\n\
         [reward]\nkind = \"contains\"\ntext = \"e\"\n\
         [generator]\nsamples = 4\nbatch = 16\nmax_new_tokens = 6\n\
         [[arm]]\nname = \"arm\"\n{arm}",
        tiny().display()
    );
    fs::write(&path, text).expect("written");
    Arc::new(arriero_experiment::load(&path, &[]).expect("the experiment is valid"))
}

/// What a run gives its learner, with a queue of records that never fills.
fn arguments(plan: &Arc<Plan>) -> LearnerArguments {
    let Checkpoint { config, weights, tokenizer } = Checkpoint::open(&tiny()).expect("the tiny model");
    let compute = Compute::CPU_F32;
    let masters = Snapshot::new(0, config.clone(), compute, weights);
    // Nobody needs to hear the reports: what the learner does does not hang on that.
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).build().expect("a runtime");
    let (listener, _) = runtime.block_on(Listener::spawn(None, Listener, ())).expect("an actor");
    let context = Context {
        plan: Arc::clone(plan),
        model: Arc::new(config),
        tokenizer,
        sampled: Queue::bounded("sampled", 1),
        scored: Queue::bounded("scored", 1),
        records: Queue::bounded("records", 1000),
        buffer: Arc::new(Mutex::new(ExperienceBuffer::new(16))),
        initial_groups: InitialGroups::default(),
        stage_groups: StageGroups::default(),
        weights: WeightCell::new(Arc::clone(&masters)),
        reward_model: RewardModelCell::default(),
        initial: Arc::clone(&masters),
        computes: Computes { generator: compute, learner: compute, reference: compute, evaluator: compute },
        shutdown: Shutdown::default(),
        faults: Faults::default(),
        conductor: listener.get_derived(),
    };
    LearnerArguments { context, compute, masters }
}

/// A round's trees: two responses to each of four prompts, with everything that samples of a policy have.
fn trees(round: u64) -> Vec<Tree> {
    let branch = |id: u32, sample: u32| {
        let length = (3 + (id + sample) % 3) as usize;
        let logps = |offset: f32| (0..length).map(|place| -offset - 0.13 * place as f32).collect();
        Branch {
            sample,
            tokens: (0..length as u32).map(|place| 40 + (7 * id + 11 * sample + 3 * place) % 60).collect(),
            is_format: vec![false; length],
            behaviour_logps: logps(3.1),
            reference_logps: logps(3.3),
            reward: if sample == 0 { 1.0 } else { 0.1 * id as f32 - 0.5 },
            ..Branch::default()
        }
    };
    let tree = |id: u32| Tree {
        prompt_id: id.into(),
        prompt: vec![1, 10 + id, 20 + id],
        branches: vec![branch(id, 0), branch(id, 1)],
        version: Some(0),
        ..Tree::default()
    };
    (0..4).map(|number| tree(4 * round as u32 + number)).collect()
}

/// What a learner came to.
#[derive(PartialEq)]
struct Learned {
    /// The bits of the metrics of each step, with their series and step.
    metrics: Vec<(String, u64, BTreeMap<String, u64>)>,
    /// The published policy.
    version: u32,
    policy: Vec<u8>,
    /// The published reward model.
    reward_model: Option<(u32, Vec<u8>)>,
    /// Its state: optimisers, critics, kept trees, results, everything.
    state: BTreeMap<PathBuf, Vec<u8>>,
    /// Units of work.
    units: usize,
}

/// A learner at the seams of its work, where it is written and read once.
struct Stops {
    at: Option<usize>,
    units: usize,
}

impl Stops {
    /// A unit of work follows.
    fn pass(&mut self, learning: Learning) -> Learning {
        self.units += 1;
        if self.at != Some(self.units) {
            return learning;
        }
        let folder = tempfile::tempdir().expect("a temporary folder");
        let folder = folder.path().join("state");
        learning.save(&folder).expect("written");
        let mut arguments = arguments(&learning.context.plan);
        arguments.context.records = learning.context.records.clone();
        drop(learning);
        Learning::load(arguments, &folder).expect("read")
    }
}

fn learn(plan: &Arc<Plan>, stop_at: Option<usize>) -> Learned {
    let mut stops = Stops { at: stop_at, units: 0 };
    let mut learning = Learning::new(arguments(plan));
    let arm = &plan.arms[0];
    learning.begin(&Address::new(&*arm.name, plan.seed, 0, ""), 0);
    for round in 0..arm.rounds as u64 {
        for stage in &arm.stages {
            learning = stops.pass(learning);
            let address = Address::new(&*arm.name, plan.seed, round, stage.name());
            match stage {
                ArmStage::Average(stage) => learning.average(stage).expect("there is something to average"),
                ArmStage::Train(stage) => {
                    for tree in trees(round) {
                        learning.context.buffer().insert(tree).expect("there is room");
                    }
                    let portion = PortionJob::whole(2, true);
                    let (stage, rounds) = ((**stage).clone(), arm.rounds as u64);
                    learning.train(TrainingJob { address, stage, rounds, portion }).expect("it fits");
                    loop {
                        learning = stops.pass(learning);
                        if !learning.step().expect("there is room for records") {
                            break;
                        }
                    }
                }
            }
        }
    }
    let mut metrics = Vec::new();
    while let Some(record) = learning.context.records.take("test", Duration::ZERO) {
        if let Record::Metrics { series, step, metrics: found, .. } = &record.item {
            let bits = found.iter().map(|(name, value)| (name.clone(), value.to_bits())).collect();
            metrics.push((series.clone(), *step, bits));
        }
        learning.context.records.done("test");
    }
    let folder = tempfile::tempdir().expect("a temporary folder");
    let bytes = |snapshot: &Snapshot| {
        let path = folder.path().join("published.safetensors");
        save_weights(&path, &snapshot.weights()).expect("written");
        fs::read(&path).expect("read")
    };
    let policy = learning.context.weights.newest();
    let reward_model = learning.context.reward_model.pull();
    let state = folder.path().join("state");
    learning.save(&state).expect("written");
    Learned {
        metrics,
        version: policy.version(),
        policy: bytes(&policy),
        reward_model: reward_model.map(|model| (model.version(), bytes(&model))),
        state: files(&state, &state),
        units: stops.units,
    }
}

/// The bytes of all files in a folder and below.
fn files(root: &Path, folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            found.extend(files(root, &path));
        } else {
            let name = path.strip_prefix(root).expect("below the root").to_path_buf();
            found.insert(name, fs::read(&path).expect("a file"));
        }
    }
    found
}

/// Stops a learner before every unit of its work. `wanted` are files that its state must have in the end.
fn goes_on(arm: &str, steps: usize, wanted: &[&str]) {
    let plan = plan(arm);
    let whole = learn(&plan, None);
    assert_eq!(whole.metrics.len(), steps);
    for name in wanted {
        assert!(whole.state.contains_key(Path::new(name)), "{name} is not in {:?}", whole.state.keys());
    }
    for unit in 1..=whole.units {
        let resumed = learn(&plan, Some(unit));
        let at = format!("stopped before unit {unit} of {}", whole.units);
        assert!(resumed.metrics == whole.metrics, "{at}: other metrics");
        assert!(resumed.policy == whole.policy, "{at}: another policy");
        let differs = |name: &&PathBuf| resumed.state.get(*name) != whole.state.get(*name);
        let names = whole.state.keys().chain(resumed.state.keys());
        assert_eq!(names.filter(differs).collect::<Vec<_>>(), Vec::<&PathBuf>::new(), "{at}");
        assert!(resumed == whole, "{at}");
    }
}

#[test]
fn preferences_of_all_rounds() {
    let arm = "[[arm.stage]]\nkind = \"dpo\"\nexperience = \"all\"\nlearning_rate = 1e-3\nbatch_size = 2\n";
    // Two epochs of four trees, then of eight.
    goes_on(arm, 4 + 8, &["kept_0.jsonl", "trainer/trained.safetensors"]);
}

/// Trees are scored first, β moves with the KL, and the optimiser goes on from round to round.
#[test]
fn a_critic_on_the_policy_and_an_adaptive_beta() {
    let arm = "[[arm.stage]]\nkind = \"ppo\"\nkl_target = 0.1\nkl_horizon = 16.0\nlearning_rate = 1e-3\nbatch_size = 2\n";
    goes_on(arm, 8, &["critic_0.safetensors", "trainer/critic.safetensors"]);
}

#[test]
fn an_adapter_between_stages() {
    let options = "learning_rate = 1e-3\nbatch_size = 2\nlora = { r = 4, alpha = 8.0 }\n";
    let arm = format!("[[arm.stage]]\nkind = \"sft\"\n{options}[[arm.stage]]\nkind = \"dpo\"\n{options}");
    goes_on(&arm, 16, &["adapter.safetensors", "adapting_base.safetensors"]);
}

#[test]
fn an_average_over_rounds() {
    let arm = "[[arm.stage]]\nkind = \"sft\"\nlearning_rate = 1e-3\nbatch_size = 2\n\
               [[arm.stage]]\nkind = \"average\"\nof = [{ stage = \"sft\", rounds = 2 }]\n";
    goes_on(arm, 8, &["result_0_0.safetensors", "result_0_1.safetensors"]);
}

/// The policy's optimiser goes on across the stage of the reward model.
#[test]
fn a_reward_model_under_an_adapter_beside_the_policy() {
    let arm = "[[arm.stage]]\nkind = \"reward_model\"\nlearning_rate = 1e-3\nbatch_size = 2\nlora = { r = 4, alpha = 8.0 }\n\
               [[arm.stage]]\nkind = \"sft\"\noptimizer = \"continue\"\nlearning_rate = 1e-3\nbatch_size = 2\n";
    goes_on(arm, 16, &["reward_model.safetensors"]);
}

/// A frozen reference that only the trainer has: the policy that the first round began with.
#[test]
fn a_reference_that_is_where_a_stage_began() {
    let arm = "[[arm.stage]]\nkind = \"sft\"\nlearning_rate = 1e-3\nbatch_size = 4\n\
               [[arm.stage]]\nkind = \"kto\"\nreference = \"start\"\nlearning_rate = 1e-3\nbatch_size = 2\n";
    goes_on(arm, 4 + 8, &["trainer_reference.safetensors"]);
    let alone = "[[arm.stage]]\nkind = \"kto\"\nreference = \"start\"\noptimizer = \"continue\"\nlearning_rate = 1e-3\n\
                 batch_size = 2\n";
    goes_on(alone, 8, &["trainer_reference.safetensors"]);
}

#[test]
fn a_reference_that_follows_the_policy() {
    let arm = "[[arm.stage]]\nkind = \"kto\"\nsync_ref_model = true\nref_model_sync_steps = 3\nlearning_rate = 1e-3\n\
               batch_size = 2\n";
    goes_on(arm, 8, &["reference_0.safetensors", "trainer/reference.safetensors"]);
}

#[test]
fn a_state_of_another_plan_is_refused() {
    let stage =
        |kind: &str| format!("[[arm.stage]]\nkind = \"{kind}\"\nlearning_rate = 1e-3\nbatch_size = 2\n");
    let own = plan(&stage("sft"));
    let mut learning = Learning::new(arguments(&own));
    for tree in trees(0) {
        learning.context.buffer().insert(tree).expect("there is room");
    }
    let address = Address::new("arm", own.seed, 0, "sft");
    let stage_of = own.arms[0].trainings().next().expect("a stage").1.clone();
    let portion = PortionJob::whole(1, false);
    learning.train(TrainingJob { address, stage: stage_of, rounds: 1, portion }).expect("it fits");
    let folder = tempfile::tempdir().expect("a temporary folder");
    let folder = folder.path().join("state");
    learning.save(&folder).expect("written");
    let Err(error) = Learning::load(arguments(&plan(&stage("dpo"))), &folder) else { panic!("it was read") };
    let error = error.to_string();
    assert!(error.contains("it is of a stage \"sft\", which the arm does not have in the plan"), "{error}");
    assert!(Learning::load(arguments(&own), &folder).is_ok());
}
