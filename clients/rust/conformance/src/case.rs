//! Cases, as the files tell them.

use std::collections::BTreeMap;
use std::error::Error;
use std::path::Path;

use serde_json::{Map, Number, Value};
use yaml_rust2::{Yaml, YamlLoader};

#[derive(Clone, Debug)]
pub(crate) struct Case {
    pub(crate) name: String,
    /// What the queues that exist before the first step are created with, by name.
    pub(crate) queues: BTreeMap<String, Map<String, Value>>,
    pub(crate) names: Vec<String>,
    pub(crate) steps: Vec<Step>,
}

#[derive(Clone, Debug, Default)]
pub(crate) struct Step {
    pub(crate) word: String,
    pub(crate) with: Map<String, Value>,
    pub(crate) client: Option<Value>,
    pub(crate) deadline: Option<f64>,
    pub(crate) expect: Option<Value>,
    pub(crate) error: Option<Value>,
    pub(crate) save: Option<String>,
}

/// The cases of all files of a directory, in their order.
pub(crate) fn read(directory: &Path) -> Result<Vec<Case>, Box<dyn Error>> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(directory)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "yaml") {
            files.push(path);
        }
    }
    files.sort();
    let mut cases = Vec::new();
    for file in files {
        let text = std::fs::read_to_string(&file)?;
        for document in
            YamlLoader::load_from_str(&text).map_err(|error| format!("{}: {error}", file.display()))?
        {
            for case in list(json(&document)?)? {
                cases.push(Case::from_json(case).map_err(|error| format!("{}: {error}", file.display()))?);
            }
        }
    }
    Ok(cases)
}

impl Case {
    fn from_json(value: Value) -> Result<Self, String> {
        let mut case =
            Self { name: String::new(), queues: BTreeMap::new(), names: Vec::new(), steps: Vec::new() };
        for (key, value) in map(value)? {
            match key.as_str() {
                "name" => case.name = text(value)?,
                "names" => case.names = list(value)?.into_iter().map(text).collect::<Result<_, _>>()?,
                "steps" => {
                    case.steps = list(value)?.into_iter().map(Step::from_json).collect::<Result<_, _>>()?
                }
                "queues" => match value {
                    Value::Array(names) => {
                        for name in names {
                            case.queues.insert(text(name)?, Map::new());
                        }
                    }
                    other => {
                        for (name, with) in map(other)? {
                            case.queues.insert(name, map(with)?);
                        }
                    }
                },
                other => return Err(format!("a case has no key {other:?}")),
            }
        }
        Ok(case)
    }

    /// The case with a prefix before each of its names, so that no two runs get in each other's way.
    pub(crate) fn under_names_of_its_own(&self, prefix: &str) -> Self {
        let names: Vec<String> = self.queues.keys().chain(&self.names).cloned().collect();
        let rename = |name: &str| match names.iter().any(|own| own == name) {
            true => format!("{prefix}{name}"),
            false => name.to_owned(),
        };
        let mut case = self.clone();
        let created = |with: &Map<String, Value>| -> Map<String, Value> {
            with.iter().map(|(key, value)| (key.clone(), renamed(value, &rename))).collect()
        };
        case.queues = self.queues.iter().map(|(name, with)| (rename(name), created(with))).collect();
        case.names = self.names.iter().map(|name| rename(name)).collect();
        for step in &mut case.steps {
            step.with = created(&step.with);
            step.expect = step.expect.as_ref().map(|value| renamed(value, &rename));
            step.error = step.error.as_ref().map(|value| renamed(value, &rename));
        }
        case
    }
}

impl Step {
    fn from_json(value: Value) -> Result<Self, String> {
        let mut step = Self::default();
        for (key, value) in map(value)? {
            match key.as_str() {
                "do" => step.word = text(value)?,
                "with" => step.with = map(value)?,
                "client" => step.client = Some(value),
                "deadline" => step.deadline = value.as_f64(),
                "expect" => step.expect = Some(value),
                "error" => step.error = Some(value),
                "save" => step.save = Some(text(value)?),
                other => return Err(format!("a step has no key {other:?}")),
            }
        }
        Ok(step)
    }
}

fn renamed(value: &Value, rename: &impl Fn(&str) -> String) -> Value {
    match value {
        Value::String(text) => Value::String(rename(text)),
        Value::Array(items) => items.iter().map(|item| renamed(item, rename)).collect(),
        Value::Object(fields) => {
            fields.iter().map(|(key, value)| (key.clone(), renamed(value, rename))).collect()
        }
        other => other.clone(),
    }
}

/// YAML as JSON. Numbers keep their digits.
fn json(yaml: &Yaml) -> Result<Value, String> {
    Ok(match yaml {
        Yaml::Null => Value::Null,
        Yaml::Boolean(value) => Value::Bool(*value),
        Yaml::Integer(number) => Value::from(*number),
        Yaml::Real(number) => Value::Number(
            serde_json::from_str::<Number>(number).map_err(|error| format!("{number}: {error}"))?,
        ),
        Yaml::String(text) => Value::String(text.clone()),
        Yaml::Array(items) => items.iter().map(json).collect::<Result<_, _>>()?,
        Yaml::Hash(fields) => {
            let mut map = Map::new();
            for (key, value) in fields {
                map.insert(text(json(key)?)?, json(value)?);
            }
            Value::Object(map)
        }
        other => return Err(format!("{other:?} has no meaning here")),
    })
}

pub(crate) fn map(value: Value) -> Result<Map<String, Value>, String> {
    match value {
        Value::Object(map) => Ok(map),
        other => Err(format!("{other} is no map")),
    }
}

pub(crate) fn list(value: Value) -> Result<Vec<Value>, String> {
    match value {
        Value::Array(items) => Ok(items),
        other => Err(format!("{other} is no list")),
    }
}

pub(crate) fn text(value: Value) -> Result<String, String> {
    match value {
        Value::String(text) => Ok(text),
        other => Err(format!("{other} is no text")),
    }
}
