//! Suites as a command line names them: kinds, paths, and options as `KEY=VALUE`.

use toml::{Table, Value};

use crate::config::{Kind, SuiteConfig};
use crate::error::EvalError;

/// The suites of these names, with what is assigned to them.
///
/// A path is `PATH` for the one suite that there is, or `NAME=PATH`. An assignment is `KEY=VALUE`, for every suite that
/// has such an option, or `NAME.KEY=VALUE` for one suite. A key may go on with dots (`judge.kind=ifeval`). The value is
/// TOML, or else a text.
///
/// # Errors
/// Names what is unknown, with the nearest that is known.
pub fn suites(names: &[String], paths: &[String], set: &[String]) -> Result<Vec<SuiteConfig>, EvalError> {
    let kinds: Vec<Kind> = names.iter().map(|name| Kind::parse(name)).collect::<Result<_, _>>()?;
    if let Some((index, kind)) = kinds.iter().enumerate().find(|(index, kind)| kinds[..*index].contains(kind))
    {
        let message = format!("is named twice, as suites {} and {}", position(&kinds, *kind), index + 1);
        return Err(EvalError::Config { suite: kind.as_str().to_string(), message });
    }
    let mut tables: Vec<Table> = kinds
        .iter()
        .map(|kind| Table::from_iter([("kind".to_string(), Value::String(kind.as_str().to_string()))]))
        .collect();
    for path in paths {
        let (kind, path) = owner_of_path(&kinds, path)?;
        tables[position(&kinds, kind) - 1].insert("path".to_string(), Value::String(path.to_string()));
    }
    for assignment in set {
        assign(&kinds, &mut tables, assignment)?;
    }
    let read = |(kind, table): (&Kind, Table)| {
        let wrong = |message: String| EvalError::Config { suite: kind.as_str().to_string(), message };
        let config: SuiteConfig = Value::Table(table)
            .try_into()
            .map_err(|error: toml::de::Error| wrong(one_line(error.message())))?;
        config.validate().map_err(wrong)?;
        Ok(config)
    };
    kinds.iter().zip(tables).map(read).collect()
}

/// From 1.
fn position(kinds: &[Kind], kind: Kind) -> usize {
    kinds.iter().position(|&known| known == kind).map_or(1, |index| index + 1)
}

fn owner_of_path<'a>(kinds: &[Kind], given: &'a str) -> Result<(Kind, &'a str), EvalError> {
    // A path may have an equals sign of its own.
    if let Some((name, path)) = given.split_once('=')
        && let Some(kind) = kinds.iter().find(|kind| kind.as_str() == name)
    {
        return Ok((*kind, path));
    }
    match kinds {
        [only] => Ok((*only, given)),
        _ => Err(EvalError::Config {
            suite: given.to_string(),
            message: "there are several suites, so that it must be said whose path this is, as in \
                      --data ifeval=prompts.jsonl"
                .to_string(),
        }),
    }
}

fn assign(kinds: &[Kind], tables: &mut [Table], assignment: &str) -> Result<(), EvalError> {
    let fail = |message: String| EvalError::Assignment { assignment: assignment.to_string(), message };
    let (key, text) = assignment
        .split_once('=')
        .ok_or_else(|| fail("expected KEY=VALUE, such as temperature=0.7 or gsm8k.shots=5".to_string()))?;
    let (key, text) = (key.trim(), text.trim());
    let value = toml::from_str::<Table>(&format!("value = {text}"))
        .ok()
        .and_then(|mut table| table.remove("value"))
        .unwrap_or_else(|| Value::String(text.to_string()));
    let mut segments: Vec<&str> = key.split('.').collect();
    let named = kinds.iter().position(|kind| kind.as_str() == segments[0]).filter(|_| segments.len() > 1);
    if named.is_some() {
        segments.remove(0);
    }
    let option = segments[0];
    let owners: Vec<usize> = (0..kinds.len())
        .filter(|&index| named.is_none_or(|named| named == index))
        .filter(|&index| option != "kind" && kinds[index].options().contains(&option))
        .collect();
    if owners.is_empty() {
        let mut known: Vec<&str> =
            kinds.iter().flat_map(|kind| kind.options()).filter(|name| *name != "kind").collect();
        known.sort_unstable();
        known.dedup();
        let likeness = |name: &&&str| (strsim::jaro_winkler(option, name) * 1e6) as u64;
        let nearest = known.iter().max_by_key(likeness).copied().unwrap_or_default();
        return Err(fail(format!(
            "unknown option {option}; the nearest valid one is \"{nearest}\" (all: {})",
            known.join(", ")
        )));
    }
    for owner in owners {
        let mut table = &mut tables[owner];
        for segment in &segments[..segments.len() - 1] {
            let inner = table.entry((*segment).to_string()).or_insert_with(|| Value::Table(Table::new()));
            table = inner.as_table_mut().ok_or_else(|| fail(format!("{segment} is a value, not a table")))?;
        }
        table.insert(segments[segments.len() - 1].to_string(), value.clone());
    }
    Ok(())
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(names: &[&str], paths: &[&str], set: &[&str]) -> Result<Vec<SuiteConfig>, String> {
        let owned = |texts: &[&str]| texts.iter().map(|text| (*text).to_string()).collect::<Vec<_>>();
        suites(&owned(names), &owned(paths), &owned(set)).map_err(|error| error.to_string())
    }

    #[test]
    fn options_go_to_the_suites_that_have_them() {
        let suites = read(
            &["gsm8k", "arc"],
            &["gsm8k=a=b.jsonl", "arc=c.jsonl"],
            &["temperature=0.5", "shots=2", "arc.shots=5", "limit=10"],
        )
        .expect("valid");
        let [gsm8k, arc] = &suites[..] else { panic!("two suites") };
        assert_eq!((gsm8k.path.as_str(), arc.path.as_str()), ("a=b.jsonl", "c.jsonl"));
        assert_eq!((gsm8k.temperature, arc.temperature), (Some(0.5), None));
        assert_eq!((gsm8k.shots, arc.shots), (Some(2), Some(5)));
        assert_eq!((gsm8k.limit, arc.limit), (Some(10), Some(10)));
        let judged =
            read(&["winrate"], &["p.jsonl"], &["against=other", "judge.kind=contains", "judge.text=\"a\""]);
        assert_eq!(judged.expect("valid")[0].judge.as_ref().map(|judge| judge.kind()), Some("contains"));
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (names, paths, set, cause) in [
            (&["gsm9k"][..], &[][..], &[][..], "the nearest is \"gsm8k\""),
            (&["arc", "arc"], &[], &[], "is named twice"),
            (&["arc", "mmlu"], &["a.jsonl"], &[], "it must be said whose path"),
            (&["arc"], &["a"], &["shot=3"], "the nearest valid one is \"shots\""),
            (&["arc"], &["a"], &["shots"], "expected KEY=VALUE"),
            (&["arc"], &["a"], &["shots=many"], "arc: invalid type"),
            (&["arc"], &["a"], &["temperature=1"], "unknown option temperature"),
        ] {
            let error = read(names, paths, set).expect_err("refused");
            assert!(error.contains(cause), "{error}");
        }
    }
}
