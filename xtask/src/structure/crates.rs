//! Which crate may depend on which, and who may name the large libraries.
//!
//! Normal and build dependencies count. Development dependencies do not. A test or an example may name a crate that
//! stands above the one it tests, since users of the crate do not get it.

use super::Package;
use std::collections::BTreeSet;

/// Each crate of ours with the crates of ours that it may depend on. ARCHITECTURE.md's table of crates says the same.
const CRATES: &[(&str, &[&str])] = &[
    ("arriero-buffers", &[]),
    ("arriero-sandbox", &[]),
    ("arriero-data", &["arriero-buffers"]),
    ("arriero-policy", &["arriero-buffers"]),
    ("arriero-results", &["arriero-buffers"]),
    ("arriero-store", &["arriero-buffers"]),
    ("arriero-reward", &["arriero-buffers", "arriero-policy", "arriero-sandbox"]),
    (
        "arriero-eval",
        &[
            "arriero-buffers",
            "arriero-data",
            "arriero-policy",
            "arriero-results",
            "arriero-reward",
            "arriero-store",
        ],
    ),
    (
        "arriero-experiment",
        &[
            "arriero-buffers",
            "arriero-data",
            "arriero-eval",
            "arriero-policy",
            "arriero-reward",
            "arriero-store",
        ],
    ),
    (
        "arriero-actors",
        &[
            "arriero-buffers",
            "arriero-data",
            "arriero-eval",
            "arriero-experiment",
            "arriero-policy",
            "arriero-results",
            "arriero-reward",
            "arriero-store",
        ],
    ),
    ("arriero-serve", &["arriero-buffers", "arriero-policy"]),
    (
        "arriero",
        &[
            "arriero-actors",
            "arriero-buffers",
            "arriero-data",
            "arriero-eval",
            "arriero-experiment",
            "arriero-policy",
            "arriero-results",
            "arriero-reward",
            "arriero-serve",
            "arriero-store",
        ],
    ),
    ("xtask", &[]),
];

/// Libraries that one or two crates wrap for all others.
const LIBRARIES: &[(&str, &[&str])] = &[
    ("tch", &["arriero-policy"]),
    ("candle-core", &["arriero-policy"]),
    ("safetensors", &["arriero-policy"]),
    ("tokenizers", &["arriero-policy"]),
    ("minijinja", &["arriero-policy"]),
    ("ractor", &["arriero-actors"]),
    ("tokio", &["arriero-actors", "arriero-serve"]),
    ("axum", &["arriero-serve"]),
    ("rusqlite", &["arriero-store"]),
    ("parquet", &["arriero-data"]),
    ("hf-hub", &["arriero-data"]),
    ("ureq", &["arriero-reward"]),
    ("seccompiler", &["arriero-sandbox"]),
    ("clap", &["arriero", "xtask"]),
    ("indicatif", &["arriero"]),
];

/// Every dependency that the tables do not allow, and every crate without a line.
pub(super) fn problems(packages: &[Package]) -> Vec<String> {
    problems_by(packages, CRATES, LIBRARIES)
}

fn problems_by(
    packages: &[Package],
    crates: &[(&str, &[&str])],
    libraries: &[(&str, &[&str])],
) -> Vec<String> {
    let tables = "the tables in xtask/src/structure/crates.rs, and ARCHITECTURE.md";
    let ours: BTreeSet<&str> = packages.iter().map(|package| package.name.as_str()).collect();
    let mut problems = Vec::new();
    for package in packages {
        let name = package.name.as_str();
        let Some((_, allowed)) = crates.iter().find(|(listed, _)| *listed == name) else {
            problems.push(format!("the crate {name} is in no table: say what it may depend on, in {tables}"));
            continue;
        };
        let counted =
            package.dependencies.iter().filter(|dependency| dependency.kind.as_deref() != Some("dev"));
        let counted: BTreeSet<&str> = counted.map(|dependency| dependency.name.as_str()).collect();
        for dependency in counted {
            let allowed = if ours.contains(dependency) {
                allowed.contains(&dependency)
            } else {
                let library = libraries.iter().find(|(listed, _)| *listed == dependency);
                library.is_none_or(|(_, users)| users.contains(&name))
            };
            if !allowed {
                problems.push(format!(
                    "{name} may not depend on {dependency}: remove the dependency, or change the design, {tables}"
                ));
            }
        }
    }
    for (listed, _) in crates.iter().filter(|(listed, _)| !ours.contains(listed)) {
        problems.push(format!("there is no crate {listed}: remove its line from {tables}"));
    }
    problems
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::structure::Metadata;

    const CRATES: &[(&str, &[&str])] = &[("low", &[]), ("high", &["low"])];
    const LIBRARIES: &[(&str, &[&str])] = &[("tch", &["low"])];

    /// Packages as `cargo metadata` writes them, from (name, [(dependency, kind)]).
    /// A crate with its dependencies and their kinds.
    type Named<'a> = (&'a str, &'a [(&'a str, Option<&'a str>)]);

    fn problems(packages: &[Named<'_>]) -> Vec<String> {
        let packages: Vec<_> = packages
            .iter()
            .map(|(name, dependencies)| {
                let dependencies: Vec<_> = dependencies
                    .iter()
                    .map(|(name, kind)| serde_json::json!({"name": name, "kind": kind, "req": "*"}))
                    .collect();
                serde_json::json!({"name": name, "dependencies": dependencies, "targets": []})
            })
            .collect();
        let metadata = serde_json::json!({"packages": packages, "version": 1});
        let metadata: Metadata = serde_json::from_value(metadata).expect("metadata");
        problems_by(&metadata.packages, CRATES, LIBRARIES)
    }

    #[test]
    fn what_the_tables_allow_passes() {
        let low: &[_] = &[("tch", None), ("serde", None)];
        assert_eq!(problems(&[("low", low), ("high", &[("low", None)])]), [""; 0]);
    }

    #[test]
    fn a_dependency_against_the_direction_is_named_unless_tests_alone_need_it() {
        let found = problems(&[("low", &[("high", None)]), ("high", &[])]);
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].starts_with("low may not depend on high: "), "{found:?}");
        let found = problems(&[("low", &[("high", Some("build"))]), ("high", &[])]);
        assert!(found[0].starts_with("low may not depend on high: "), "{found:?}");
        assert_eq!(problems(&[("low", &[("high", Some("dev"))]), ("high", &[])]), [""; 0]);
    }

    #[test]
    fn a_library_stays_with_the_crate_that_wraps_it() {
        let found = problems(&[("low", &[]), ("high", &[("tch", None), ("tch", Some("dev"))])]);
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].starts_with("high may not depend on tch: "), "{found:?}");
    }

    #[test]
    fn crates_and_lines_of_the_table_belong_together() {
        let found = problems(&[("low", &[]), ("new", &[])]);
        assert_eq!(found.len(), 2, "{found:?}");
        assert!(found[0].starts_with("the crate new is in no table: "), "{found:?}");
        assert!(found[1].starts_with("there is no crate high: "), "{found:?}");
    }
}
