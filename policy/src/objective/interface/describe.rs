//! What there is to say of an algorithm, from where it stands already: the head of its module, the comments and
//! defaults of its options, its needs.

use schemars::JsonSchema;
use schemars::generate::SchemaSettings;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_aux::serde_introspection::serde_introspect;
use serde_json::{Map, Value, json};

use super::{AlgorithmConfig, Needs};

/// An algorithm in words.
#[derive(Debug, Clone, PartialEq)]
pub struct Description {
    /// `kind` in an experiment file.
    pub kind: &'static str,
    /// One line.
    pub about: &'static str,
    /// The equation, the paper, and what else its module says at its head.
    pub text: String,
    /// What it must be given, with its default options.
    pub needs: Needs,
    /// Its options.
    pub options: Vec<OptionDescription>,
}

/// An option in words.
#[derive(Debug, Clone, PartialEq)]
pub struct OptionDescription {
    /// Its key.
    pub name: &'static str,
    /// What it does, its default and where that comes from.
    pub text: String,
    /// The default, where there is one.
    pub default: Value,
    /// What it chooses from, where it chooses from names; each with what it means.
    pub choices: Vec<(String, String)>,
}

/// Describes the algorithm with the options `C`, whose module has this source.
pub fn describe<C>(kind: &'static str, about: &'static str, source: &str) -> Description
where
    C: AlgorithmConfig + Clone + Default + JsonSchema + Serialize + DeserializeOwned,
{
    let resolved = C::default().resolved();
    let defaults = serde_json::to_value(&resolved).unwrap_or_default();
    let settings = SchemaSettings::default().with(|settings| settings.inline_subschemas = true);
    let schema = settings.into_generator().into_root_schema_for::<C>().to_value();
    let properties = schema["properties"].as_object().cloned().unwrap_or_default();
    let option = |&name: &&'static str| option(name, &properties, &defaults);
    Description {
        kind,
        about,
        text: module_head(source),
        needs: resolved.objective().needs(),
        options: serde_introspect::<C>().iter().map(option).collect(),
    }
}

fn option(name: &'static str, properties: &Map<String, Value>, defaults: &Value) -> OptionDescription {
    let property = properties.get(name).cloned().unwrap_or_else(|| json!({}));
    let mut choices = Vec::new();
    collect_choices(&property, &mut choices);
    OptionDescription { name, text: description(&property), default: defaults[name].clone(), choices }
}

fn description(schema: &Value) -> String {
    plain(schema["description"].as_str().unwrap_or_default())
}

/// The names of an enumeration, wherever it stands in the schema of an option.
fn collect_choices(schema: &Value, choices: &mut Vec<(String, String)>) {
    if let Some(name) = schema["const"].as_str() {
        choices.push((name.to_string(), description(schema)));
    }
    for name in schema["enum"].as_array().into_iter().flatten().filter_map(Value::as_str) {
        choices.push((name.to_string(), String::new()));
    }
    for inner in ["anyOf", "oneOf"].iter().filter_map(|key| schema[*key].as_array()).flatten() {
        collect_choices(inner, choices);
    }
}

/// The `//!` lines that a module begins with.
fn module_head(source: &str) -> String {
    let lines = source.lines().map_while(|line| line.strip_prefix("//!"));
    plain(&lines.map(|line| line.strip_prefix(' ').unwrap_or(line)).collect::<Vec<_>>().join("\n"))
}

/// Without the brackets of rustdoc's links.
fn plain(text: &str) -> String {
    text.replace("[`", "`").replace("`]", "`").replace("super::", "")
}

#[cfg(test)]
mod tests {
    use arriero_buffers::selection::BestAgainstWorst;

    use super::*;
    use crate::objective::Algorithm;

    #[test]
    fn an_algorithm_is_described_by_its_own_comments() {
        let dpo = Algorithm::describe("dpo").expect("it is there");
        assert!(
            dpo.text.contains("Rafailov et al.") && dpo.text.contains("log σ(r(y⁺) − r(y⁻))"),
            "{}",
            dpo.text
        );
        assert_eq!((dpo.needs.selection, dpo.needs.reference), (BestAgainstWorst.into(), true));
        let option = |name: &str| dpo.options.iter().find(|option| option.name == name).expect("an option");
        assert_eq!(option("beta").default, json!(0.1));
        assert!(
            option("beta").text.contains("Default 0.1 (the paper's and TRL's)"),
            "{}",
            option("beta").text
        );
        let losses = &option("loss").choices;
        let (_, robust) = losses.iter().find(|(name, _)| name == "robust").expect("a loss");
        assert!(robust.contains("Chowdhury"), "{robust}");
        assert_eq!(Algorithm::describe("dpu"), None);
    }

    /// What a user is told of an option is what its field's comment says.
    #[test]
    fn every_algorithm_has_a_paper_and_every_option_a_text() {
        for &kind in Algorithm::KINDS {
            let description = Algorithm::describe(kind).expect("it is registered");
            assert!(description.text.contains("20"), "{kind} names no year of a paper: {}", description.text);
            assert!(description.text.contains('='), "{kind} has no equation: {}", description.text);
            for option in description.options {
                assert!(!option.text.is_empty(), "{kind}.{} has no comment", option.name);
            }
        }
    }
}
