//! Taking an address apart into its parameters, both forms alike.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::iter::Peekable;
use std::str::Chars;

use percent_encoding::percent_decode_str;

use super::error::DatabaseUrlError;

/// What `tokio_postgres` is given under the same name. The password goes by itself.
const PASSED_ON: &[&str] = &[
    "application_name",
    "channel_binding",
    "connect_timeout",
    "dbname",
    "host",
    "hostaddr",
    "keepalives",
    "keepalives_idle",
    "keepalives_interval",
    "keepalives_retries",
    "load_balance_hosts",
    "options",
    "port",
    "sslnegotiation",
    "target_session_attrs",
    "user",
];

/// The parameters of an address; of one that is given twice, the last counts.
#[derive(Default)]
pub(super) struct Parameters {
    texts: BTreeMap<String, String>,
    /// Bytes, because a percent-encoded password need not be UTF-8.
    password: Option<Vec<u8>>,
}

impl Parameters {
    pub(super) fn parse(text: &str) -> Result<Parameters, DatabaseUrlError> {
        let text = text.trim();
        match text.strip_prefix("postgres://").or_else(|| text.strip_prefix("postgresql://")) {
            Some(rest) => Parameters::from_url(rest),
            None => Parameters::from_pairs(text),
        }
    }

    pub(super) fn get(&self, name: &str) -> Option<&str> {
        self.texts.get(name).map(String::as_str)
    }

    pub(super) fn take(&mut self, name: &str) -> Option<String> {
        self.texts.remove(name).filter(|text| !text.is_empty())
    }

    pub(super) fn take_number(&mut self, name: &'static str) -> Result<Option<u64>, DatabaseUrlError> {
        let Some(text) = self.take(name) else { return Ok(None) };
        text.parse().map(Some).map_err(|_| DatabaseUrlError::bad_value(name))
    }

    /// Hands everything that is left to `tokio_postgres`.
    pub(super) fn into_config(mut self) -> Result<tokio_postgres::Config, DatabaseUrlError> {
        self.translate()?;
        let is_unknown = |name: &&String| !PASSED_ON.contains(&name.as_str());
        let names: Vec<String> = self.texts.keys().filter(is_unknown).cloned().collect();
        if !names.is_empty() {
            return Err(DatabaseUrlError::UnknownParameters { names });
        }
        let mut pairs = String::new();
        for name in PASSED_ON {
            let Some(text) = self.texts.get(*name) else { continue };
            let pair = format!("{name}='{}' ", text.replace('\\', r"\\").replace('\'', r"\'"));
            if pair.parse::<tokio_postgres::Config>().is_err() {
                return Err(DatabaseUrlError::bad_value(name));
            }
            pairs.push_str(&pair);
        }
        let parsed = pairs.parse::<tokio_postgres::Config>();
        let mut config = parsed.map_err(|_| DatabaseUrlError::Shape)?;
        if let Some(password) = self.password {
            config.password(password);
        }
        Ok(config)
    }

    /// Brings what libpq spells otherwise into `tokio_postgres`' words, and drops what has no effect here.
    fn translate(&mut self) -> Result<(), DatabaseUrlError> {
        // To libpq an empty value is an absent one.
        self.texts.retain(|_, text| !text.is_empty());
        if let Some(count) = self.take("keepalives_count") {
            self.texts.insert("keepalives_retries".to_owned(), count);
        }
        if self.get("target_session_attrs") == Some("primary") {
            self.texts.insert("target_session_attrs".to_owned(), "read-write".to_owned());
        }
        match self.take("gssencmode").as_deref() {
            None | Some("disable" | "prefer") => {}
            Some(_) => return Err(DatabaseUrlError::bad_value("gssencmode")),
        }
        match self.take("client_encoding").map(|text| text.to_lowercase()).as_deref() {
            None | Some("utf8" | "utf-8" | "auto") => Ok(()),
            Some(_) => Err(DatabaseUrlError::bad_value("client_encoding")),
        }
    }

    fn from_url(rest: &str) -> Result<Parameters, DatabaseUrlError> {
        let mut parameters = Parameters::default();
        let (authority, tail) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
        let (path, query) = tail.split_once('?').unwrap_or((tail, ""));
        let database = path.strip_prefix('/').unwrap_or_default();
        // An unencoded password would end up in the name of the database or of a parameter, and be shown.
        if tail.contains('@') || database.contains('/') {
            return Err(DatabaseUrlError::Unencoded);
        }
        let hosts = match authority.rsplit_once('@') {
            Some((credentials, hosts)) => {
                let (user, password) = credentials.split_once(':').unzip();
                parameters.set("user", &decode(user.unwrap_or(credentials))?);
                if let Some(password) = password {
                    parameters.password = Some(Cow::from(percent_decode_str(password)).into_owned());
                }
                hosts
            }
            None => authority,
        };
        parameters.add_hosts(hosts)?;
        parameters.set("dbname", &decode(database)?);
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (name, text) = pair.split_once('=').ok_or(DatabaseUrlError::NoValue)?;
            let name = checked_name(&decode(name)?)?;
            if name == "password" {
                parameters.password = Some(Cow::from(percent_decode_str(text)).into_owned());
            } else {
                parameters.set(&name, &decode(text)?);
            }
        }
        Ok(parameters)
    }

    fn add_hosts(&mut self, hosts: &str) -> Result<(), DatabaseUrlError> {
        let mut names = Vec::new();
        let mut ports = Vec::new();
        for host in hosts.split(',') {
            let (name, port) = match host.strip_prefix('[') {
                Some(rest) => rest.split_once(']').ok_or(DatabaseUrlError::Shape)?,
                None => host.split_at(host.find(':').unwrap_or(host.len())),
            };
            let port = match port.strip_prefix(':') {
                Some(port) => port,
                None if port.is_empty() => port,
                None => return Err(DatabaseUrlError::Shape),
            };
            // A password with / or ? in it makes its beginning look like a port.
            if !port.bytes().all(|byte| byte.is_ascii_digit()) {
                return Err(DatabaseUrlError::bad_value("port"));
            }
            names.push(decode(name)?);
            ports.push(port);
        }
        self.set("host", &names.join(","));
        if ports.iter().any(|port| !port.is_empty()) {
            self.set("port", &ports.join(","));
        }
        Ok(())
    }

    fn from_pairs(text: &str) -> Result<Parameters, DatabaseUrlError> {
        let mut parameters = Parameters::default();
        let mut rest = text.chars().peekable();
        let mut is_first = true;
        while let Some(name) = next_name(&mut rest, is_first)? {
            let text = next_text(&mut rest)?;
            if name == "password" {
                parameters.password = Some(text.into_bytes());
            } else {
                parameters.set(&name, &text);
            }
            is_first = false;
        }
        if is_first { Err(DatabaseUrlError::Shape) } else { Ok(parameters) }
    }

    fn set(&mut self, name: &str, text: &str) {
        self.texts.insert(name.to_owned(), text.to_owned());
    }
}

fn decode(text: &str) -> Result<String, DatabaseUrlError> {
    percent_decode_str(text).decode_utf8().map(Cow::into_owned).map_err(|_| DatabaseUrlError::Encoding)
}

/// A name that may be shown: anything else could be a piece of a password.
fn checked_name(name: &str) -> Result<String, DatabaseUrlError> {
    let is_name = !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_');
    if is_name { Ok(name.to_owned()) } else { Err(DatabaseUrlError::Shape) }
}

fn next_name(rest: &mut Peekable<Chars<'_>>, is_first: bool) -> Result<Option<String>, DatabaseUrlError> {
    while rest.next_if(|letter| letter.is_whitespace()).is_some() {}
    let mut name = String::new();
    while let Some(letter) = rest.next_if(|letter| !letter.is_whitespace() && *letter != '=') {
        name.push(letter);
    }
    while rest.next_if(|letter| letter.is_whitespace()).is_some() {}
    match rest.next() {
        None if name.is_empty() => Ok(None),
        Some('=') => checked_name(&name).map(Some),
        _ if is_first => Err(DatabaseUrlError::Shape),
        _ => Err(DatabaseUrlError::NoValue),
    }
}

fn next_text(rest: &mut Peekable<Chars<'_>>) -> Result<String, DatabaseUrlError> {
    let has_space = rest.next_if(|letter| letter.is_whitespace()).is_some();
    while rest.next_if(|letter| letter.is_whitespace()).is_some() {}
    if rest.next_if_eq(&'\'').is_some() {
        return quoted_text(rest);
    }
    let mut text = String::new();
    while let Some(letter) = rest.next_if(|letter| !letter.is_whitespace()) {
        if letter == '\\' {
            text.extend(rest.next());
        } else {
            text.push(letter);
        }
    }
    // libpq would read `host= password=…` as a host called "password=…", and we would show it.
    if has_space && text.contains('=') { Err(DatabaseUrlError::NoValue) } else { Ok(text) }
}

fn quoted_text(rest: &mut Peekable<Chars<'_>>) -> Result<String, DatabaseUrlError> {
    let mut text = String::new();
    loop {
        match rest.next() {
            Some('\\') => text.extend(rest.next()),
            Some('\'') => return Ok(text),
            Some(letter) => text.push(letter),
            None => return Err(DatabaseUrlError::UnendedQuote),
        }
    }
}
