//! What the machine must bring: Python with `venv`, a C compiler and a C++ compiler.

use anyhow::{Result, bail};
use std::env;
use std::process::Command;

/// Minor versions of Python 3 that the pinned torch has wheels for.
const PYTHON_MINOR: std::ops::RangeInclusive<u32> = 10..=14;

/// Tried in this order unless PYTHON names one.
const PYTHONS: [&str; 6] = ["python3", "python3.14", "python3.13", "python3.12", "python3.11", "python3.10"];

/// Prints the version, and whether a virtual environment with pip can be made. Debian leaves ensurepip out.
const PROBE: &str = "import sys, importlib.util as u\n\
    print(*sys.version_info[:3], *(m for m in ('venv', 'ensurepip') if u.find_spec(m) is None))";

/// Something that is not on this machine, and how to get it.
#[derive(Debug, PartialEq)]
struct Missing {
    what: &'static str,
    found: String,
    /// Commands for Debian and Ubuntu, for Fedora, and for macOS.
    install: [String; 3],
    otherwise: &'static str,
}

/// Checks everything, and gives the command of the Python to use.
///
/// # Errors
/// If anything is missing: all of it at once, each with how to get it.
pub fn check() -> Result<String> {
    let (c, cxx) = (compiler(&C), compiler(&CXX));
    let candidates = match env::var("PYTHON") {
        Ok(python) if !python.is_empty() => vec![python],
        _ => PYTHONS.map(str::to_owned).to_vec(),
    };
    let python = choose_python(candidates.into_iter().map(|command| {
        let probe = probe(&command);
        (command, probe)
    }));
    match (python, c, cxx) {
        (Ok(python), Ok(()), Ok(())) => Ok(python),
        (python, c, cxx) => bail!("{}", report(&[python.err(), c.err(), cxx.err()])),
    }
}

fn report(missing: &[Option<Box<Missing>>]) -> String {
    let mut report = "Arriero needs what this machine does not have:\n".to_owned();
    for Missing { what, found, install: [debian, fedora, macos], otherwise } in
        missing.iter().flatten().map(|missing| &**missing)
    {
        report += &format!(
            "\n{what} ({found})\n  Debian, Ubuntu:  {debian}\n  Fedora:          {fedora}\n  \
             macOS:           {macos}\n  or {otherwise}\n"
        );
    }
    report + "\nThen run the same command again."
}

/// What a Python said to [`PROBE`].
#[derive(Debug, PartialEq)]
struct Probe {
    version: [u32; 3],
    /// Those of `venv` and `ensurepip` that it lacks.
    lacks: Vec<String>,
}

fn probe(command: &str) -> Option<Probe> {
    let output = Command::new(command).args(["-I", "-c", PROBE]).output().ok()?;
    if !output.status.success() {
        return None;
    }
    parse_probe(&String::from_utf8_lossy(&output.stdout))
}

fn parse_probe(line: &str) -> Option<Probe> {
    let mut words = line.split_whitespace();
    let mut number = || -> Option<u32> { words.next()?.parse().ok() };
    let version = [number()?, number()?, number()?];
    Some(Probe { version, lacks: words.map(str::to_owned).collect() })
}

/// The first Python that will do. Else what is missing in the one that came nearest.
fn choose_python(candidates: impl Iterator<Item = (String, Option<Probe>)>) -> Result<String, Box<Missing>> {
    let mut names = Vec::new();
    let mut unfit = None;
    let mut lacking = None;
    for (command, probe) in candidates {
        match probe {
            Some(Probe { version: [3, minor, _], lacks }) if PYTHON_MINOR.contains(&minor) => {
                if lacks.is_empty() {
                    return Ok(command);
                }
                lacking.get_or_insert((command.clone(), minor, lacks));
            }
            Some(Probe { version: [major, minor, patch], .. }) => {
                unfit.get_or_insert(format!("found {command} {major}.{minor}.{patch}"));
            }
            None => {}
        }
        names.push(command);
    }
    if let Some((command, minor, lacks)) = lacking {
        return Err(Box::new(Missing {
            what: "Python's venv and ensurepip",
            found: format!("{command} 3.{minor} lacks {}", lacks.join(" and ")),
            install: [
                format!("sudo apt install python3.{minor}-venv"),
                format!("sudo dnf install python3.{minor}"),
                format!("brew install python@3.{minor}"),
            ],
            otherwise: "name another Python by PYTHON=/path/to/python3",
        }));
    }
    Err(Box::new(Missing {
        what: "Python 3.10 to 3.14",
        found: unfit.unwrap_or_else(|| format!("could not run {}", names.join(", "))),
        install: [
            "sudo apt install python3 python3-venv".to_owned(),
            "sudo dnf install python3.13".to_owned(),
            "brew install python@3.13".to_owned(),
        ],
        otherwise: "name one by PYTHON=/path/to/python3",
    }))
}

/// A compiler that build scripts call, and packages that hold it.
struct Compiler {
    what: &'static str,
    variable: &'static str,
    default: &'static str,
    others: &'static [&'static str],
    debian: &'static str,
    fedora: &'static str,
    otherwise: &'static str,
}

const C: Compiler = Compiler {
    what: "a C compiler and linker",
    variable: "CC",
    default: "cc",
    others: &["gcc", "clang"],
    debian: "gcc",
    fedora: "gcc",
    otherwise: "name one by CC=/path/to/cc",
};

const CXX: Compiler = Compiler {
    what: "a C++ compiler",
    variable: "CXX",
    default: "c++",
    others: &["g++", "clang++"],
    debian: "g++",
    fedora: "gcc-c++",
    otherwise: "name one by CXX=/path/to/c++",
};

fn compiler(compiler: &Compiler) -> Result<(), Box<Missing>> {
    let chosen = env::var(compiler.variable).ok().filter(|value| !value.is_empty());
    let value = chosen.clone().unwrap_or_else(|| compiler.default.to_owned());
    // The variable may hold arguments or a wrapper, as in CXX="ccache g++".
    let mut words = value.split_whitespace();
    if words.next().is_some_and(|program| runs(program, words)) {
        return Ok(());
    }
    let found = match (chosen, compiler.others.iter().find(|other| runs(other, [].into_iter()))) {
        (Some(value), _) => format!("could not run {}={value}", compiler.variable),
        (None, Some(other)) => {
            format!(
                "could not run {}, but {other} is there: set {}={other}",
                compiler.default, compiler.variable
            )
        }
        (None, None) => format!("could not run {}", compiler.default),
    };
    Err(Box::new(Missing {
        what: compiler.what,
        found,
        install: [
            format!("sudo apt install {}", compiler.debian),
            format!("sudo dnf install {}", compiler.fedora),
            "xcode-select --install".to_owned(),
        ],
        otherwise: compiler.otherwise,
    }))
}

/// Whether the program is there and works. Apple's stand-ins for absent compilers are there, but fail.
fn runs<'a>(program: &str, args: impl Iterator<Item = &'a str>) -> bool {
    let output = Command::new(program).args(args).arg("--version").output();
    output.is_ok_and(|output| output.status.success())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn python(version: [u32; 3], lacks: &[&str]) -> Option<Probe> {
        Some(Probe { version, lacks: lacks.iter().map(|module| (*module).to_owned()).collect() })
    }

    fn choose<const N: usize>(candidates: [(&str, Option<Probe>); N]) -> Result<String, Box<Missing>> {
        choose_python(candidates.into_iter().map(|(command, probe)| (command.to_owned(), probe)))
    }

    #[test]
    fn a_probe_reads_version_and_lacking_modules() {
        assert_eq!(parse_probe("3 11 7\n"), python([3, 11, 7], &[]));
        assert_eq!(parse_probe("3 12 3 ensurepip\n"), python([3, 12, 3], &["ensurepip"]));
        assert_eq!(parse_probe("3 12\n"), None);
        assert_eq!(parse_probe("pyenv: python3.12: command not found"), None);
    }

    #[test]
    fn the_first_python_with_version_and_modules_is_taken() {
        let chosen = choose([
            ("python3", python([3, 9, 18], &[])),
            ("python3.15", python([3, 15, 0], &[])),
            ("python3.14", None),
            ("python3.13", python([3, 13, 1], &["ensurepip"])),
            ("python3.12", python([3, 12, 0], &[])),
            ("python3.10", python([3, 10, 0], &[])),
        ]);
        assert_eq!(chosen.as_deref(), Ok("python3.12"));
    }

    #[test]
    fn versions_outside_the_wheels_are_refused() {
        for (version, fits) in
            [([3, 9, 99], false), ([3, 10, 0], true), ([3, 14, 2], true), ([3, 15, 0], false)]
        {
            assert_eq!(choose([("python3", python(version, &[]))]).is_ok(), fits, "{version:?}");
        }
        assert!(choose([("python", python([2, 12, 0], &[]))]).is_err());
    }

    #[test]
    fn the_report_names_everything_missing_with_how_to_get_it() {
        let no_python = choose([("python3", None), ("python3.14", None)]).expect_err("none runs");
        let no_cxx =
            compiler(&Compiler { variable: "NO_SUCH_VARIABLE", default: "no-c++", others: &[], ..CXX });
        assert_eq!(
            report(&[Some(no_python), None, no_cxx.err()]),
            "Arriero needs what this machine does not have:

Python 3.10 to 3.14 (could not run python3, python3.14)
  Debian, Ubuntu:  sudo apt install python3 python3-venv
  Fedora:          sudo dnf install python3.13
  macOS:           brew install python@3.13
  or name one by PYTHON=/path/to/python3

a C++ compiler (could not run no-c++)
  Debian, Ubuntu:  sudo apt install g++
  Fedora:          sudo dnf install gcc-c++
  macOS:           xcode-select --install
  or name one by CXX=/path/to/c++

Then run the same command again."
        );
    }

    #[test]
    fn an_old_python_and_one_without_venv_are_told_apart() {
        let old = choose([("python3", python([3, 9, 2], &[])), ("python3.14", None)]).expect_err("too old");
        assert_eq!((old.what, old.found.as_str()), ("Python 3.10 to 3.14", "found python3 3.9.2"));

        let candidates =
            [("python3", python([3, 9, 2], &[])), ("python3.12", python([3, 12, 3], &["ensurepip"]))];
        let lacking = choose(candidates).expect_err("no ensurepip");
        assert_eq!(lacking.found, "python3.12 3.12 lacks ensurepip");
        assert_eq!(lacking.install[0], "sudo apt install python3.12-venv");
    }

    #[test]
    fn another_compiler_that_is_there_is_named() {
        // cargo is what runs this test, so it is there.
        let odd =
            Compiler { variable: "NO_SUCH_VARIABLE", default: "no-cc", others: &["no-gcc", "cargo"], ..C };
        let missing = compiler(&odd).expect_err("no-cc is not there");
        assert_eq!(missing.found, "could not run no-cc, but cargo is there: set NO_SUCH_VARIABLE=cargo");
    }
}
