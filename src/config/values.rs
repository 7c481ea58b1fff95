//! Finding the strongest value of each option, and noting every one that does not fit.

use std::path::Path;
use std::str::FromStr;

use super::file::File;
use super::problem::{Problems, Source};
use super::setting::Setting;
use super::settings::CONFIG;
use super::sources::{Flags, Sources};
use super::value;

/// All three sources at once.
pub(super) struct Values<'a> {
    flags: &'a Flags,
    sources: Sources<'a>,
    file: File,
    pub(super) problems: Problems,
}

/// A value as it was written, and where.
pub(super) struct Found {
    pub(super) texts: Vec<String>,
    pub(super) source: Source,
}

impl<'a> Values<'a> {
    /// Reads the file, if one is named, and gets ready to look values up.
    pub(super) fn gather(flags: &'a Flags, sources: Sources<'a>) -> Values<'a> {
        let mut values = Values { flags, sources, file: File::default(), problems: Problems::default() };
        if let Some(path) = values.optional(&CONFIG, value::path) {
            match (sources.read_file)(&path) {
                Ok(text) => values.file = File::parse(&path, &text, &mut values.problems),
                Err(error) => values.complain(&CONFIG, &format!("cannot be read: {error}")),
            }
        }
        values
    }

    /// The value of an option that has a default. A placeholder stands in for a wrong one: it is never seen,
    /// because the problem is noted.
    pub(super) fn one<T: Default>(
        &mut self,
        setting: &Setting,
        read: impl Fn(&str) -> Result<T, String>,
    ) -> T {
        self.optional(setting, read).unwrap_or_default()
    }

    /// The value of an option that may be absent.
    pub(super) fn optional<T>(
        &mut self,
        setting: &Setting,
        read: impl Fn(&str) -> Result<T, String>,
    ) -> Option<T> {
        let found = self.find(setting)?;
        let text = found.texts.first()?;
        self.read(setting, text, &found.source, read)
    }

    /// The values of an option that takes several; there is at least one, or a problem is noted.
    pub(super) fn list<T: FromStr<Err = String> + PartialEq>(&mut self, setting: &Setting) -> Vec<T> {
        let Some(Found { texts, source }) = self.find(setting) else { return Vec::new() };
        let texts: Vec<String> = match source {
            Source::CommandLine => texts,
            _ => texts.iter().flat_map(|text| text.split(',')).map(|text| text.trim().to_owned()).collect(),
        };
        if texts.is_empty() {
            self.problems.add_value(setting, "", &source, "is an empty list: give at least one");
        }
        texts.iter().filter_map(|text| self.read(setting, text, &source, T::from_str)).collect()
    }

    /// Whether a value was given at all, rather than left to its default; for a switch, whether it is on.
    pub(super) fn is_given(&self, setting: &Setting) -> bool {
        match self.find(setting) {
            Some(Found { source: Source::Default, .. }) | None => false,
            Some(Found { texts, .. }) if setting.default == Some("false") => {
                texts.iter().any(|text| value::boolean(text) == Ok(true))
            }
            Some(_) => true,
        }
    }

    /// Notes that the value of an option does not fit; `complaint` continues a sentence that begins with it.
    pub(super) fn complain(&mut self, setting: &Setting, complaint: &str) {
        if let Some(found) = self.find(setting) {
            self.problems.add_value(setting, &found.texts.join(","), &found.source, complaint);
        }
    }

    /// Notes that two options exclude each other.
    pub(super) fn exclude(&mut self, one: &Setting, other: &Setting, reason: &str) {
        let (Some(found), Some(other_found)) = (self.find(one), self.find(other)) else { return };
        let (names, other_names) = (one.names(), other.names());
        let (source, other_source) = (found.source, other_found.source);
        self.problems.add(format!(
            "{names} {source} and {other_names} {other_source} exclude each other: {reason}; leave one of them out"
        ));
    }

    /// Notes a file that cannot be read.
    pub(super) fn check_readable(&mut self, setting: &Setting, path: &Path) {
        if let Err(error) = (self.sources.read_file)(path) {
            let complaint = format!("names the file {path:?}, which cannot be read: {error}");
            self.complain(setting, &complaint);
        }
    }

    /// A variable that is no option of ours, such as `NO_COLOR`.
    pub(super) fn variable(&self, name: &str) -> Option<String> {
        (self.sources.environment)(name).filter(|text| !text.is_empty())
    }

    pub(super) fn find(&self, setting: &Setting) -> Option<Found> {
        if let Some(texts) = self.flags.get(setting.flag) {
            return Some(Found { texts: texts.clone(), source: Source::CommandLine });
        }
        for name in [Some(setting.variable), setting.weaker_variable].into_iter().flatten() {
            // Kubernetes sets NAME_PORT=tcp://… for its services: beside a service called pgmq-grpc-postgres,
            // PGMQ_GRPC_POSTGRES_PORT is not meant for us.
            let is_service_link = |text: &str| name.ends_with("_PORT") && text.starts_with("tcp://");
            if let Some(text) = self.variable(name).filter(|text| !is_service_link(text)) {
                return Some(Found { texts: vec![text], source: Source::Variable(name) });
            }
        }
        if let Some(texts) = self.file.texts.get(setting.flag) {
            let source = Source::File { path: self.file.path.clone(), key: setting.flag };
            return Some(Found { texts: texts.clone(), source });
        }
        let default = setting.default?;
        Some(Found { texts: vec![default.to_owned()], source: Source::Default })
    }

    fn read<T>(
        &mut self,
        setting: &Setting,
        text: &str,
        source: &Source,
        read: impl Fn(&str) -> Result<T, String>,
    ) -> Option<T> {
        let outcome = match text.contains(char::REPLACEMENT_CHARACTER) {
            true => Err("is not valid UTF-8".to_owned()),
            false => read(text),
        };
        match outcome {
            Ok(value) => Some(value),
            Err(complaint) => {
                self.problems.add_value(setting, text, source, &complaint);
                None
            }
        }
    }
}
