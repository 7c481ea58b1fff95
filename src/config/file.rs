//! The TOML file: one flat table whose keys are the names of the flags.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::problem::Problems;
use super::setting::{Setting, Shape};
use super::settings::SETTINGS;

/// What a file says: the texts of each key.
#[derive(Default)]
pub(super) struct File {
    pub(super) path: PathBuf,
    pub(super) texts: BTreeMap<&'static str, Vec<String>>,
}

impl File {
    /// Reads the text of a file. Keys that do not exist and values of another kind become problems.
    pub(super) fn parse(path: &Path, text: &str, problems: &mut Problems) -> File {
        let mut file = File { path: path.to_owned(), texts: BTreeMap::new() };
        let table: toml::Table = match toml::from_str(text) {
            Ok(table) => table,
            Err(error) => {
                // Not the error's Display: it quotes the line, which may hold a password.
                let before = error.span().and_then(|span| text.get(..span.start)).unwrap_or_default();
                let line = before.matches('\n').count() + 1;
                problems.add(format!(
                    "{} is not valid TOML: line {line}: {}",
                    path.display(),
                    error.message()
                ));
                return file;
            }
        };
        for (key, value) in &table {
            let Some(setting) = SETTINGS.iter().find(|setting| setting.in_file && setting.flag == key) else {
                problems.add(unknown_key(path, key));
                continue;
            };
            match texts(setting, value) {
                Some(texts) => {
                    file.texts.insert(setting.flag, texts);
                }
                None => problems.add(wrong_kind(path, setting, value)),
            }
        }
        file
    }
}

fn texts(setting: &Setting, value: &toml::Value) -> Option<Vec<String>> {
    match value {
        toml::Value::Array(values) if setting.shape == Shape::Many => values.iter().map(text).collect(),
        value => Some(vec![text(value)?]),
    }
}

fn text(value: &toml::Value) -> Option<String> {
    match value {
        toml::Value::String(text) => Some(text.clone()),
        toml::Value::Integer(number) => Some(number.to_string()),
        toml::Value::Float(number) => Some(number.to_string()),
        toml::Value::Boolean(boolean) => Some(boolean.to_string()),
        toml::Value::Datetime(_) | toml::Value::Array(_) | toml::Value::Table(_) => None,
    }
}

fn wrong_kind(path: &Path, setting: &Setting, value: &toml::Value) -> String {
    let right = match setting.shape {
        Shape::One => "a string or a number",
        Shape::Many => "a string or an array of strings",
        Shape::Switch => "true or false",
    };
    let (names, key, kind) = (setting.names(), setting.flag, value.type_str());
    format!("{names}: key {key} of {} is of kind {kind}, not {right}", path.display())
}

fn unknown_key(path: &Path, key: &str) -> String {
    let file = path.display();
    if SETTINGS.iter().any(|setting| !setting.in_file && setting.flag == key) {
        return format!("key {key} of {file}: the file cannot name it; give the flag or the variable");
    }
    let nearest = SETTINGS
        .iter()
        .filter(|setting| setting.in_file)
        .map(|setting| (distance(&key.to_lowercase().replace('_', "-"), setting.flag), setting.flag))
        .min();
    match nearest {
        Some((distance, flag)) if distance <= 3 && distance < flag.len() / 2 => {
            format!("key {key:?} of {file} is not an option; is {flag} meant?")
        }
        _ => format!("key {key:?} of {file} is not an option; keys are the names of the flags"),
    }
}

/// How many letters must be added, removed or changed to make one word the other.
fn distance(one: &str, other: &str) -> usize {
    let other: Vec<char> = other.chars().collect();
    let mut row: Vec<usize> = (0..=other.len()).collect();
    for (i, letter) in one.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for j in 0..other.len() {
            let changed = diagonal + usize::from(letter != other[j]);
            diagonal = row[j + 1];
            row[j + 1] = changed.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[other.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> (File, Problems) {
        let mut problems = Problems::default();
        let file = File::parse(Path::new("/etc/q.toml"), text, &mut problems);
        (file, problems)
    }

    #[test]
    fn strings_numbers_booleans_and_arrays_are_read() {
        let (file, problems) = parse("listen = ['a', 'b']\npool-size = 3\nephemeral = true\nlog = 'info'");
        assert_eq!(problems.sentences(), [""; 0]);
        assert_eq!(file.texts["listen"], ["a", "b"]);
        assert_eq!(file.texts["pool-size"], ["3"]);
        assert_eq!(file.texts["ephemeral"], ["true"]);
        assert_eq!(file.texts["log"], ["info"]);
    }

    #[test]
    fn every_unknown_key_is_told_with_the_nearest_known_one() {
        let (_, problems) = parse("pool_size = 3\nlisen = 'x'\ncolour = 1\nconfig = 'x'\n[limits]\nx = 1");
        let mut sentences = problems.sentences().to_vec();
        sentences.sort();
        assert_eq!(
            sentences,
            [
                "key \"colour\" of /etc/q.toml is not an option; keys are the names of the flags",
                "key \"limits\" of /etc/q.toml is not an option; keys are the names of the flags",
                "key \"lisen\" of /etc/q.toml is not an option; is listen meant?",
                "key \"pool_size\" of /etc/q.toml is not an option; is pool-size meant?",
                "key config of /etc/q.toml: the file cannot name it; give the flag or the variable",
            ]
        );
    }

    #[test]
    fn values_of_another_kind_are_told() {
        let (_, problems) = parse("pool-size = [1]\nlisten = [[1]]\nno-install = 2020-01-01");
        assert_eq!(problems.sentences().len(), 3, "{problems}");
        assert!(problems.to_string().contains("key pool-size of /etc/q.toml is of kind array, not a string"));
        assert!(
            problems.to_string().contains("key no-install of /etc/q.toml is of kind datetime, not true or")
        );
    }

    #[test]
    fn broken_toml_names_the_line_and_shows_no_value() {
        for text in [
            "log = 'info'\ndatabase-url = postgres://me:secret@h/d",
            "\ndatabase-url = 'postgres://me:secret@h",
        ] {
            let (_, problems) = parse(text);
            assert_eq!(problems.sentences().len(), 1, "{problems}");
            assert!(
                problems.sentences()[0].starts_with("/etc/q.toml is not valid TOML: line 2: "),
                "{problems}"
            );
            assert!(!problems.to_string().contains("secret"), "{problems}");
        }
    }
}
