//! Which suite, from which rows, with which options.

use std::collections::BTreeMap;

use arriero_data::{DataConfig, Format, OnError};
use arriero_policy::sampling::SamplingConfig;
use arriero_reward::RewardConfig;
use serde::{Deserialize, Serialize};

use crate::error::EvalError;

/// What is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// Instructions that can be verified (Zhou et al., arXiv:2311.07911).
    Ifeval,
    /// Arithmetic word problems, judged by their final answer (Cobbe et al., arXiv:2110.14168).
    Gsm8k,
    /// Science questions with choices (Clark et al., arXiv:1803.05457).
    Arc,
    /// Endings of everyday scenes (Zellers et al., arXiv:1905.07830).
    Hellaswag,
    /// Questions of 57 subjects with four choices (Hendrycks et al., arXiv:2009.03300).
    Mmlu,
    /// How probable texts or conversations are.
    Perplexity,
    /// Functions that pass tests (Chen et al., arXiv:2107.03374).
    Humaneval,
    /// Which of two answers to the same prompt is better, the model's or another's.
    Winrate,
    /// Whether a reward model scores the preferred answer higher.
    Preference,
}

/// The options of a suite. Those that are left out have the defaults of its kind.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SuiteConfig {
    /// What is measured.
    pub kind: Kind,
    /// What the suite is called in tables and records. Default: its kind.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Its rows: a file of JSON lines or Parquet, plain or gzipped, a folder of such files, or a Hugging Face
    /// dataset. Default: the kind's own dataset, where it has one ([`Kind::dataset`]).
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub path: String,
    /// What a field is called in the file, where it has not its usual name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub fields: BTreeMap<String, String>,
    /// At most this many items, the first ones. Default all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<usize>,
    /// What a row does that cannot be asked or judged. Default stop.
    #[serde(default)]
    pub on_error: OnError,
    /// The greatest share of rows that may be left out, from 0 to 1. Default 0.1.
    #[serde(default = "max_skipped")]
    pub max_skipped: f64,
    /// Examples before each question. Default 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shots: Option<usize>,
    /// Where the examples come from. Default: the first rows of the file, which are not asked then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shots_path: Option<String>,
    /// Whether questions go through the chat template. Default: for answers that are generated, if the model
    /// has a template; for choices and texts, no (as lm-evaluation-harness does).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub chat: Option<bool>,
    /// Standing instructions, under a chat template. Default none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub system: Option<String>,
    /// Tokens an answer may have. Default 512.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_new_tokens: Option<usize>,
    /// 0 always takes the most probable token. Default 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub temperature: Option<f64>,
    /// Only the k most probable tokens; 0 for all. Default 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub top_k: Option<usize>,
    /// Only the most probable tokens that together have this probability. Default 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub top_p: Option<f64>,
    /// Only tokens with at least this share of the most probable one's probability. Default 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min_p: Option<f64>,
    /// Texts that end an answer. Default: none under a chat template; without one, the kind's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stop: Option<Vec<String>>,
    /// Answers to each question; figures are over all of them. Default 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub samples: Option<usize>,
    /// Answers decoded at once. Default 64.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub batch: Option<usize>,
    /// Tokens that go through the model at once where nothing is generated. Default 4096.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub batch_tokens: Option<usize>,
    /// Tokens of a text that the model sees at once. Default 2048, or the model's context if that is less.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub window: Option<usize>,
    /// By how many tokens a window lies behind the one before it. So each has at least `window - stride` tokens of
    /// context. Default half the window.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stride: Option<usize>,
    /// Pairs with a longer conversation are left out, and counted (as TRL's trainer does). Default: the model's
    /// context.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_length: Option<usize>,
    /// Whose answers the model's are compared with: a model, or a file of completions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub against: Option<String>,
    /// What judges: of `winrate` any reward, which compares the two answers; of `humaneval` the reward `code` with its
    /// options. Default of `humaneval`: `code` with its defaults.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub judge: Option<RewardConfig>,
}

fn max_skipped() -> f64 {
    0.1
}

/// Options that every suite has.
const COMMON: &[&str] = &["kind", "name", "path", "fields", "limit", "on_error", "max_skipped"];
/// Options of suites whose answers are generated.
const GENERATED: &[&str] = &[
    "chat",
    "system",
    "max_new_tokens",
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "stop",
    "samples",
    "batch",
];

/// The greatest sizes: more would only run out of memory.
const MOST: usize = 1 << 24;

impl Kind {
    /// All of them, by their names.
    pub const ALL: &[(&'static str, Kind)] = &[
        ("ifeval", Kind::Ifeval),
        ("gsm8k", Kind::Gsm8k),
        ("arc", Kind::Arc),
        ("hellaswag", Kind::Hellaswag),
        ("mmlu", Kind::Mmlu),
        ("perplexity", Kind::Perplexity),
        ("humaneval", Kind::Humaneval),
        ("winrate", Kind::Winrate),
        ("preference", Kind::Preference),
    ];

    /// Its name.
    pub fn as_str(self) -> &'static str {
        Kind::ALL.iter().find(|(_, kind)| *kind == self).map_or("", |(name, _)| name)
    }

    /// The kind of this name.
    ///
    /// # Errors
    /// Names the nearest.
    pub fn parse(name: &str) -> Result<Self, EvalError> {
        if let Some((_, kind)) = Kind::ALL.iter().find(|(known, _)| *known == name) {
            return Ok(*kind);
        }
        let likeness = |known: &str| (strsim::jaro_winkler(name, known) * 1e6) as u64;
        let nearest =
            Kind::ALL.iter().max_by_key(|(known, _)| likeness(known)).map_or("", |(known, _)| known);
        let all = Kind::ALL.iter().map(|(known, _)| *known).collect::<Vec<_>>().join(", ");
        Err(EvalError::UnknownSuite { name: name.to_string(), nearest, all })
    }

    /// The Hugging Face dataset that it was published as, in the form that [`DataConfig::path`] takes. `None` for kinds
    /// that measure on anybody's rows.
    pub fn dataset(self) -> Option<&'static str> {
        match self {
            Kind::Ifeval => Some("hf://google/IFEval:train"),
            Kind::Gsm8k => Some("hf://openai/gsm8k/main:test"),
            Kind::Arc => Some("hf://allenai/ai2_arc/ARC-Challenge:test"),
            Kind::Hellaswag => Some("hf://Rowan/hellaswag:validation"),
            Kind::Mmlu => Some("hf://cais/mmlu/all:test"),
            Kind::Humaneval => Some("hf://openai/openai_humaneval:test"),
            Kind::Perplexity | Kind::Winrate | Kind::Preference => None,
        }
    }

    /// Whether it asks a reward model instead of a language model.
    pub fn is_of_reward_models(self) -> bool {
        self == Kind::Preference
    }

    /// Whether its answers are generated.
    pub fn is_generated(self) -> bool {
        matches!(self, Kind::Ifeval | Kind::Gsm8k | Kind::Humaneval | Kind::Winrate)
    }

    /// The names of the options that it reads.
    pub fn options(self) -> Vec<&'static str> {
        let own: &[&str] = match self {
            Kind::Ifeval => &[],
            Kind::Gsm8k => &["shots", "shots_path"],
            Kind::Arc | Kind::Hellaswag | Kind::Mmlu => {
                &["shots", "shots_path", "chat", "system", "batch_tokens"]
            }
            Kind::Perplexity => &["window", "stride", "batch_tokens"],
            Kind::Humaneval => &["judge"],
            Kind::Winrate => &["against", "judge"],
            Kind::Preference => &["max_length", "batch_tokens"],
        };
        let generated: &[&str] = if self.is_generated() { GENERATED } else { &[] };
        [COMMON, generated, own].concat()
    }
}

impl SuiteConfig {
    /// A suite with its defaults.
    pub fn new(kind: Kind) -> Self {
        SuiteConfig {
            kind,
            name: None,
            path: String::new(),
            fields: BTreeMap::new(),
            limit: None,
            on_error: OnError::Stop,
            max_skipped: max_skipped(),
            shots: None,
            shots_path: None,
            chat: None,
            system: None,
            max_new_tokens: None,
            temperature: None,
            top_k: None,
            top_p: None,
            min_p: None,
            stop: None,
            samples: None,
            batch: None,
            batch_tokens: None,
            window: None,
            stride: None,
            max_length: None,
            against: None,
            judge: None,
        }
    }

    /// What it is called.
    pub fn name(&self) -> &str {
        self.name.as_deref().unwrap_or(self.kind.as_str())
    }

    /// Where its rows are.
    pub fn source(&self) -> Option<&str> {
        if self.path.is_empty() { self.kind.dataset() } else { Some(&self.path) }
    }

    /// Checks the options.
    ///
    /// # Errors
    /// With a sentence that begins with the option's name.
    pub fn validate(&self) -> Result<(), String> {
        self.check_foreign()?;
        if self.source().is_none() {
            return Err(format!(
                "path is missing; {} is measured on rows of yours: give it a file",
                self.kind.as_str()
            ));
        }
        if let Some(name) = &self.name {
            arriero_store::check_arm_name(name).map_err(|error| format!("name is wrong: {error}"))?;
        }
        let counts = [
            ("limit", self.limit),
            ("max_new_tokens", self.max_new_tokens),
            ("samples", self.samples),
            ("batch", self.batch),
            ("batch_tokens", self.batch_tokens),
            ("stride", self.stride),
            ("max_length", self.max_length),
        ];
        if let Some((name, count)) =
            counts.into_iter().find(|(_, count)| count.is_some_and(|count| !(1..=MOST).contains(&count)))
        {
            return Err(format!("{name} is {}; it must be from 1 to {MOST}", count.unwrap_or(0)));
        }
        if !(0.0..=1.0).contains(&self.max_skipped) {
            return Err(format!("max_skipped is {}, but must be from 0 to 1", self.max_skipped));
        }
        if self.window.is_some_and(|window| window < 2) {
            return Err("window is less than 2, but needs a token to predict and one before it".to_string());
        }
        if let (Some(window), Some(stride)) = (self.window, self.stride)
            && stride >= window
        {
            return Err(format!("stride is {stride}, but must be less than window, which is {window}"));
        }
        if self.samples > Some(1) && self.temperature.unwrap_or(0.0) == 0.0 {
            return Err("samples is more than 1, but they would all be the same; set temperature".to_string());
        }
        if self.kind == Kind::Winrate {
            if self.against.is_none() {
                return Err("against is missing; expected a model, or a file of completions".to_string());
            }
            match &self.judge {
                None => {
                    return Err(
                        "judge is missing; expected a reward, such as judge.kind=reward_model".to_string()
                    );
                }
                Some(judge) => judge.validate().map_err(|cause| format!("judge is wrong: {cause}"))?,
            }
        }
        self.sampling(&[]).validate()
    }

    /// Refuses options that this kind does not read.
    fn check_foreign(&self) -> Result<(), String> {
        let given = match serde_json::to_value(self) {
            Ok(serde_json::Value::Object(given)) => given,
            _ => return Ok(()),
        };
        let known = self.kind.options();
        let Some(foreign) = given.keys().find(|name| !known.contains(&name.as_str())) else { return Ok(()) };
        let owners: Vec<&str> = Kind::ALL
            .iter()
            .filter(|(_, kind)| kind.options().contains(&foreign.as_str()))
            .map(|(name, _)| *name)
            .collect();
        Err(format!("{foreign} is no option of {}; it is one of {}", self.kind.as_str(), owners.join(", ")))
    }

    /// How its answers are decoded. `stop` ends one where the options do not say.
    pub fn sampling(&self, stop: &[&str]) -> SamplingConfig {
        let stop = || stop.iter().map(|text| (*text).to_string()).collect();
        SamplingConfig {
            max_new_tokens: self.max_new_tokens.unwrap_or(512),
            temperature: self.temperature.unwrap_or(0.0),
            top_k: self.top_k.unwrap_or(0),
            top_p: self.top_p.unwrap_or(1.0),
            min_p: self.min_p.unwrap_or(0.0),
            stop: self.stop.clone().unwrap_or_else(stop),
        }
    }

    /// How the rows of this path are read.
    pub(crate) fn data(&self, path: &str) -> DataConfig {
        let format = match self.kind {
            Kind::Ifeval => Format::Ifeval,
            _ => Format::Auto,
        };
        DataConfig {
            path: path.to_string(),
            format,
            fields: self.fields.clone(),
            shuffle: false,
            // Long texts are what perplexity is measured on.
            max_row_bytes: 1 << 28,
            ..DataConfig::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_have_names_and_options() {
        for (name, kind) in Kind::ALL {
            assert_eq!(Kind::parse(name).expect("its own name"), *kind);
            assert_eq!(serde_json::to_value(kind).expect("plain"), *name);
            let known = serde_aux::serde_introspection::serde_introspect::<SuiteConfig>();
            assert!(kind.options().iter().all(|option| known.contains(option)), "{name}");
        }
        let error = Kind::parse("hellaswagg").expect_err("a slip").to_string();
        assert!(error.contains("the nearest is \"hellaswag\" (all: ifeval, gsm8k"), "{error}");
    }

    #[test]
    fn wrong_options_are_named() {
        let suite = |kind| SuiteConfig::new(kind);
        for (config, cause) in [
            (SuiteConfig { limit: Some(0), ..suite(Kind::Ifeval) }, "limit is 0"),
            (
                SuiteConfig { shots: Some(2), ..suite(Kind::Ifeval) },
                "shots is no option of ifeval; it is one of gsm8k, ",
            ),
            (suite(Kind::Perplexity), "path is missing"),
            (SuiteConfig { samples: Some(4), ..suite(Kind::Gsm8k) }, "samples is more than 1"),
            (SuiteConfig { temperature: Some(-1.0), ..suite(Kind::Gsm8k) }, "temperature is -1"),
            (
                SuiteConfig { path: "a".into(), window: Some(8), stride: Some(8), ..suite(Kind::Perplexity) },
                "stride is 8, but must be less than window",
            ),
            (SuiteConfig { path: "a".into(), ..suite(Kind::Winrate) }, "against is missing"),
            (
                SuiteConfig { path: "a".into(), against: Some("b".into()), ..suite(Kind::Winrate) },
                "judge is missing",
            ),
        ] {
            let error = config.validate().expect_err("refused");
            assert!(error.starts_with(cause), "{error}");
        }
        assert_eq!(suite(Kind::Ifeval).validate(), Ok(()));
    }
}
