//! The files of a crate, and which names each takes from which other.

use super::cycles::{Graph, Import};
use super::sources::{ModulePath, Scope, Source};
use anyhow::{Context, Result, ensure};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// Names may be re-exported so often; more is a circle.
const MAX_REEXPORTS: usize = 32;

/// A name, and the module that defines it; without a name, a module.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Definition {
    module: ModulePath,
    name: Option<String>,
}

/// The modules of a library or a program.
pub(super) struct Modules {
    /// Each with the file that it is in.
    scopes: BTreeMap<ModulePath, (PathBuf, Scope)>,
    /// Each file's module.
    files: BTreeMap<PathBuf, ModulePath>,
}

impl Modules {
    /// Reads the file `root` and those in its folder. Paths are shown from `workspace` on.
    ///
    /// # Errors
    /// If a file cannot be read or is no Rust.
    pub fn read(workspace: &Path, root: &Path) -> Result<Self> {
        let folder = root.parent().context("a source file has a folder")?;
        let mut texts = Vec::new();
        let mut folders = vec![folder.to_path_buf()];
        while let Some(open) = folders.pop() {
            let entries = fs::read_dir(&open).with_context(|| format!("cannot read {}", open.display()))?;
            for entry in entries {
                let path = entry?.path();
                if path.is_dir() {
                    folders.push(path);
                } else if path.extension().is_some_and(|extension| extension == "rs") {
                    let text = fs::read_to_string(&path)
                        .with_context(|| format!("cannot read {}", path.display()))?;
                    let module =
                        if path == root { ModulePath::new() } else { module_of(path.strip_prefix(folder)?) };
                    texts.push((path.strip_prefix(workspace).unwrap_or(&path).to_path_buf(), module, text));
                }
            }
        }
        texts.sort();
        Self::parse(texts)
    }

    /// From the path, module and text of each file.
    fn parse(texts: Vec<(PathBuf, ModulePath, String)>) -> Result<Self> {
        let mut modules = Modules { scopes: BTreeMap::new(), files: BTreeMap::new() };
        let mut test_modules = Vec::new();
        for (file, module, text) in texts {
            let source = Source::parse(module.clone(), &text)
                .with_context(|| format!("{} cannot be read as Rust", file.display()))?;
            test_modules.extend(source.test_modules);
            for scope in source.scopes {
                let module = scope.module.clone();
                let twice = modules.scopes.insert(module.clone(), (file.clone(), scope));
                ensure!(twice.is_none(), "{} has the module {} again", file.display(), module.join("::"));
            }
            modules.files.insert(file, module);
        }
        let is_kept = |module: &ModulePath| !test_modules.iter().any(|test| module.starts_with(test));
        modules.scopes.retain(|module, _| is_kept(module));
        modules.files.retain(|_, module| is_kept(module));
        Ok(modules)
    }

    /// How many files there are, those of tests left out.
    pub fn file_count(&self) -> usize {
        self.files.len()
    }

    /// A graph for the top-level modules with the root, and one for each folder below.
    pub fn graphs(&self) -> Vec<Graph> {
        let mut graphs: BTreeMap<ModulePath, Graph> = BTreeMap::new();
        for import in self.imports() {
            let (from, to) = (&self.files[&import.from], &self.files[&import.to]);
            let shared = from.iter().zip(to).take_while(|(one, other)| one == other).count();
            let node = |module: &ModulePath, file: &Path| match module.get(shared) {
                Some(_) => Some(module[..=shared].join("::")),
                None if shared == 0 => Some(file.file_name()?.to_string_lossy().into_owned()),
                // A parent and what is below it are one.
                None => None,
            };
            if let (Some(one), Some(other)) = (node(from, &import.from), node(to, &import.to)) {
                graphs.entry(from[..shared].to_vec()).or_default().add(&one, &other, import);
            }
        }
        graphs.into_values().collect()
    }

    /// What each file takes from each other.
    fn imports(&self) -> Vec<Import> {
        let mut names: BTreeMap<(&PathBuf, &PathBuf), BTreeSet<String>> = BTreeMap::new();
        for (file, scope) in self.scopes.values() {
            let aliases = scope.aliases.iter().map(|(_, path)| path);
            for path in aliases.chain(&scope.globs).chain(&scope.paths) {
                let Some(definition) = self.resolve(&scope.module, path, 0) else { continue };
                let (other, _) = &self.scopes[&definition.module];
                if other != file {
                    let name = definition.name.or_else(|| definition.module.last().cloned());
                    names.entry((file, other)).or_default().extend(name);
                }
            }
        }
        let import = |((from, to), names): ((&PathBuf, &PathBuf), _)| Import {
            from: from.clone(),
            to: to.clone(),
            names,
        };
        names.into_iter().map(import).collect()
    }

    /// Where a path's target is defined, as seen from a module. `None` for what is not of this crate.
    fn resolve(&self, module: &ModulePath, path: &[String], depth: usize) -> Option<Definition> {
        let (first, mut rest) = path.split_first()?;
        let mut base = match first.as_str() {
            "crate" => ModulePath::new(),
            "self" => module.clone(),
            "super" => parent(module)?,
            name => {
                let child = join(module, name);
                if self.scopes.contains_key(&child) {
                    return self.descend(child, rest, depth);
                }
                return self.alias(module, name, rest, depth);
            }
        };
        while let Some((first, more)) = rest.split_first()
            && first == "super"
        {
            (base, rest) = (parent(&base)?, more);
        }
        self.descend(base, rest, depth)
    }

    /// Follows a path down from a module of ours.
    fn descend(&self, mut module: ModulePath, path: &[String], depth: usize) -> Option<Definition> {
        let mut rest = path;
        while let Some((name, more)) = rest.split_first() {
            let child = join(&module, name);
            if self.scopes.contains_key(&child) {
                (module, rest) = (child, more);
                continue;
            }
            let (_, scope) = self.scopes.get(&module)?;
            if !scope.items.contains(name) {
                let found = self.alias(&module, name, more, depth).or_else(|| self.glob(scope, name, depth));
                if found.is_some() {
                    return found;
                }
            }
            // Defined here, made by a macro, or another crate's and re-exported here.
            return Some(Definition { module, name: Some(name.clone()) });
        }
        self.scopes.contains_key(&module).then_some(Definition { module, name: None })
    }

    /// A name that a module has by `use`, and what follows it.
    fn alias(&self, module: &ModulePath, name: &str, rest: &[String], depth: usize) -> Option<Definition> {
        let (_, scope) = self.scopes.get(module)?;
        let (_, path) = scope.aliases.iter().find(|(alias, _)| alias == name)?;
        if depth == MAX_REEXPORTS || path.first().is_some_and(|first| first == name) {
            return None;
        }
        let found = self.resolve(module, path, depth + 1)?;
        match found.name {
            None => self.descend(found.module, rest, depth + 1),
            Some(_) => Some(found),
        }
    }

    /// A name that comes by `use path::*`.
    fn glob(&self, scope: &Scope, name: &str, depth: usize) -> Option<Definition> {
        if depth == MAX_REEXPORTS {
            return None;
        }
        scope.globs.iter().find_map(|path| {
            let Definition { module, name: None } = self.resolve(&scope.module, path, depth + 1)? else {
                return None;
            };
            let (_, other) = &self.scopes[&module];
            let here = other.items.contains(name) || other.aliases.iter().any(|(alias, _)| alias == name);
            if here { self.descend(module, &[name.to_string()], depth + 1) } else { None }
        })
    }
}

/// `foo/bar.rs` and `foo/bar/mod.rs` are `foo::bar`.
fn module_of(file: &Path) -> ModulePath {
    let without = file.with_extension("");
    let module = without.iter().map(|part| part.to_string_lossy().into_owned());
    let mut module: ModulePath = module.collect();
    if module.last().is_some_and(|last| last == "mod") {
        module.pop();
    }
    module
}

fn join(module: &ModulePath, name: &str) -> ModulePath {
    module.iter().cloned().chain([name.to_string()]).collect()
}

fn parent(module: &ModulePath) -> Option<ModulePath> {
    module.split_last().map(|(_, parent)| parent.to_vec())
}

#[cfg(test)]
impl Modules {
    /// A made-up crate, from its files and their texts; `main.rs` or `lib.rs` is the root.
    pub fn of(files: &[(&str, &str)]) -> Self {
        let file = |(path, text): &(&str, &str)| {
            let root = ["main.rs", "lib.rs"].contains(path);
            let module = if root { ModulePath::new() } else { module_of(Path::new(path)) };
            (PathBuf::from(path), module, text.to_string())
        };
        Self::parse(files.iter().map(file).collect()).expect("Rust")
    }
}
