//! `[selection]`: what is worth training on.

use arriero_buffers::SelectionConfig;

use crate::document::Section;
use crate::error::ExperimentError;

/// Reads a `selection` section over these defaults.
pub(crate) fn selection(
    mut section: Section<'_>,
    default: &SelectionConfig,
) -> Result<SelectionConfig, ExperimentError> {
    let selection: SelectionConfig = section.read(default)?;
    section.check(selection.validate())?;
    section.finish()?;
    Ok(selection)
}
