//! What is wrong with a configuration, told all at once.

use std::fmt;
use std::path::PathBuf;

use super::setting::Setting;

/// Everything that is wrong with a configuration, one sentence each. Its `Display` is a numbered list, ready for
/// standard error; it never shows the value of a secret.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Problems {
    sentences: Vec<String>,
}

impl Problems {
    /// The sentences in the order of the options, file problems first.
    pub fn sentences(&self) -> &[String] {
        &self.sentences
    }

    pub(crate) fn one(sentence: String) -> Problems {
        Problems { sentences: vec![sentence] }
    }

    pub(crate) fn append(&mut self, mut more: Problems) {
        self.sentences.append(&mut more.sentences);
    }

    pub(crate) fn add(&mut self, sentence: String) {
        self.sentences.push(sentence);
    }

    /// Notes a value that does not fit; `complaint` continues a sentence that begins with the value.
    pub(super) fn add_value(&mut self, setting: &Setting, text: &str, source: &Source, complaint: &str) {
        let value = if setting.secret { "the value".to_owned() } else { format!("{text:?}") };
        self.add(format!("{}: {value} {source} {complaint}", setting.names()));
    }

    /// The value, if nothing was wrong with the places that it was made from.
    pub(crate) fn unless_any<T>(self, value: T) -> Result<T, Problems> {
        if self.sentences.is_empty() { Ok(value) } else { Err(self) }
    }
}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.sentences.len() {
            1 => writeln!(f, "pgmq-grpc cannot start: 1 problem in the configuration")?,
            count => writeln!(f, "pgmq-grpc cannot start: {count} problems in the configuration")?,
        }
        for (index, sentence) in self.sentences.iter().enumerate() {
            writeln!(f, "  {}. {sentence}", index + 1)?;
        }
        write!(f, "see pgmq-grpc --help for all options")
    }
}

impl std::error::Error for Problems {}

/// Where a value was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Source {
    CommandLine,
    Variable(&'static str),
    File { path: PathBuf, key: &'static str },
    Default,
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Source::CommandLine => write!(f, "from the command line"),
            Source::Variable(name) => write!(f, "from the environment variable {name}"),
            Source::File { path, key } => write!(f, "from key {key} of {}", path.display()),
            Source::Default => write!(f, "by default"),
        }
    }
}
