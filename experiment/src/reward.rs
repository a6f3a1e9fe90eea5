//! `[reward]`: what is optimised.

use std::path::Path;

use arriero_reward::RewardConfig;

use crate::document::{Document, Section};
use crate::error::ExperimentError;
use crate::unscored::Unscored;

/// Reads the `[reward]` of a file, if one is given, with `kind` and `set` (`option=value`) on top of it. Other tables
/// of the file do not matter.
///
/// # Errors
/// As [`load`](crate::load()).
pub fn read_reward(
    path: Option<&Path>,
    kind: Option<&str>,
    set: &[String],
) -> Result<(RewardConfig, Unscored), ExperimentError> {
    let text = path.map_or(Ok(String::new()), |path| {
        std::fs::read_to_string(path)
            .map_err(|cause| ExperimentError::Unreadable { path: path.to_path_buf(), cause })
    })?;
    let kind = kind.map(|kind| format!("reward.kind={}", toml::Value::from(kind)));
    let set: Vec<String> =
        kind.into_iter().chain(set.iter().map(|assignment| format!("reward.{assignment}"))).collect();
    let document = Document::parse(path.unwrap_or(Path::new("--reward")), &text, &set)?;
    reward(document.root().child("reward")?)
}

pub(crate) fn reward(mut section: Section<'_>) -> Result<(RewardConfig, Unscored), ExperimentError> {
    let unscored: Unscored = section.read(&Unscored::default())?;
    section.check(unscored.validate())?;
    let default = RewardConfig::default();
    let reward: RewardConfig =
        section.read_kind(RewardConfig::KINDS, RewardConfig::option_names, Some(default.kind()))?;
    section.check(reward.validate())?;
    section.finish()?;
    Ok((reward, unscored))
}
