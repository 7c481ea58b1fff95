//! Where values come from: flags, environment and file, in this order of strength.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;

/// The world outside the command line, as functions, so that tests can have one of their own.
#[derive(Clone, Copy)]
pub struct Sources<'a> {
    /// Reads an environment variable; an empty one counts as unset.
    pub environment: &'a dyn Fn(&str) -> Option<String>,
    /// Reads a file.
    pub read_file: &'a dyn Fn(&Path) -> io::Result<String>,
}

impl Sources<'static> {
    /// The environment and files of this process.
    pub fn process() -> Sources<'static> {
        Sources { environment: &process_variable, read_file: &|path| std::fs::read_to_string(path) }
    }
}

/// The flags of a command line: the texts of each, by name without dashes.
///
/// It has no `Debug`, because a flag can hold a password.
#[derive(Clone, Default)]
pub struct Flags {
    texts: BTreeMap<&'static str, Vec<String>>,
}

impl Flags {
    /// Adds the texts given with one flag.
    pub fn add(&mut self, flag: &'static str, texts: Vec<String>) {
        self.texts.insert(flag, texts);
    }

    pub(super) fn get(&self, flag: &str) -> Option<&Vec<String>> {
        self.texts.get(flag)
    }
}

/// The only place that reads the environment. What is not UTF-8 comes with U+FFFD in it and is refused later.
#[expect(clippy::disallowed_methods, reason = "the one place that reads the environment")]
fn process_variable(name: &str) -> Option<String> {
    std::env::var_os(name).map(|value| value.to_string_lossy().into_owned())
}
