//! What to log, and how.

use std::str::FromStr;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;

/// What to log, and how.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogOptions {
    /// Which events are logged. Default: those of level info and above.
    pub filter: LogFilter,
    /// The form of a line. Default: `Auto`.
    pub format: LogFormat,
    /// Whether colours are allowed on a terminal: false if the environment has `NO_COLOR`. Default: true.
    pub color: bool,
}

/// The form of a log line.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum LogFormat {
    /// `Text` on a terminal, `Json` elsewhere.
    #[default]
    Auto,
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

impl FromStr for LogFormat {
    type Err = String;

    fn from_str(text: &str) -> Result<LogFormat, String> {
        match text {
            "auto" => Ok(LogFormat::Auto),
            "text" => Ok(LogFormat::Text),
            "json" => Ok(LogFormat::Json),
            _ => Err("is none of auto, text and json".to_owned()),
        }
    }
}

/// A filter that `tracing_subscriber` understands.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LogFilter(String);

impl LogFilter {
    /// Makes the filter. It bounds nothing by itself: `telemetry` keeps secrets out whatever it says.
    pub fn env_filter(&self) -> EnvFilter {
        EnvFilter::builder().with_regex(false).parse_lossy(&self.0)
    }
}

impl FromStr for LogFilter {
    type Err = String;

    fn from_str(text: &str) -> Result<LogFilter, String> {
        let right =
            "give a level (error, warn, info, debug, trace, off) or target=level pairs separated by commas";
        let parts: Vec<&str> = text.split(',').map(str::trim).collect();
        // EnvFilter takes a lone word for a target, so that a misspelt level would silence everything.
        let is_level = |part: &str| !part.is_empty() && part.parse::<LevelFilter>().is_ok();
        if let Some(word) = parts.iter().find(|part| !part.contains(['=', '[']) && !is_level(part)) {
            return Err(format!("is not a log filter, for {word:?} is not a level: {right}"));
        }
        let text = parts.join(",");
        match EnvFilter::builder().with_regex(false).parse(&text) {
            Ok(_) => Ok(LogFilter(text)),
            Err(_) => Err(format!("is not a log filter: {right}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_is_a_level_or_pairs() {
        for right in [
            "info",
            "WARN",
            "off",
            "info,pgmq_grpc=debug",
            "warn, h2=info",
            "info,[call{queue=orders}]=debug",
        ] {
            assert!(right.parse::<LogFilter>().is_ok(), "{right:?}");
        }
        for wrong in ["", "inof", "info,pgmq_grpc", "pgmq_grpc=loud", "a=b=c", "info,,debug"] {
            assert!(wrong.parse::<LogFilter>().is_err(), "{wrong:?}");
        }
    }
}
