//! Logs: what is written, in which form, and what never is.

use std::io::{self, IsTerminal};

use tracing::level_filters::LevelFilter;
use tracing::subscriber::Subscriber;
use tracing_subscriber::filter::filter_fn;
use tracing_subscriber::fmt::{self, MakeWriter};
use tracing_subscriber::layer::{Layer, SubscriberExt};
use tracing_subscriber::registry::Registry;
use tracing_subscriber::util::{SubscriberInitExt, TryInitError};

use crate::config::{LogFormat, LogOptions};

/// Crates whose finer levels log values of statements, headers or keys, or the text of every statement; and the most
/// that is logged of each, whatever the filter says. The first that matches counts.
const CAPS: &[(&str, LevelFilter)] = &[
    ("h2", LevelFilter::INFO),
    ("hyper", LevelFilter::INFO),
    ("hyper_util", LevelFilter::INFO),
    // Each migration by its file's name; what came of them is a line of ours.
    ("refinery_core", LevelFilter::WARN),
    ("rustls", LevelFilter::INFO),
    ("tokio_rustls", LevelFilter::INFO),
    ("tonic", LevelFilter::INFO),
    // At WARN it logs the whole text of a slow statement, and pgmq's installation is one.
    ("sqlx::query", LevelFilter::ERROR),
    ("sqlx", LevelFilter::WARN),
    // At INFO it logs notices, which a trigger may fill with a payload.
    ("tokio_postgres", LevelFilter::WARN),
    ("tokio_postgres_rustls", LevelFilter::WARN),
    ("postgres_protocol", LevelFilter::WARN),
];

/// Sends the logs of the process to standard error, from now on.
///
/// # Errors
///
/// Something else has done so before.
pub fn init(options: &LogOptions) -> Result<(), TryInitError> {
    let is_terminal = io::stderr().is_terminal();
    let form = match options.format {
        LogFormat::Auto if is_terminal => Form::Text { color: options.color },
        LogFormat::Text => Form::Text { color: options.color && is_terminal },
        LogFormat::Auto | LogFormat::Json => Form::Json,
    };
    subscriber(options, form, io::stderr).try_init()
}

/// The form of a line, once it is known where it goes.
#[derive(Debug, Clone, Copy)]
enum Form {
    Text { color: bool },
    Json,
}

/// A layer for each matter: the user's filter, the caps, the form. All filters must agree, so no filter of the user's,
/// however specific, undoes a cap. Times are RFC 3339 in UTC.
fn subscriber<W>(options: &LogOptions, form: Form, writer: W) -> impl Subscriber + Send + Sync + use<W>
where
    W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
{
    let lines: Box<dyn Layer<_> + Send + Sync> = match form {
        Form::Text { color } => fmt::layer().with_writer(writer).with_ansi(color).boxed(),
        Form::Json => {
            fmt::layer().with_writer(writer).json().flatten_event(true).with_span_list(false).boxed()
        }
    };
    let caps = filter_fn(|metadata| is_allowed(metadata.target(), *metadata.level()));
    Registry::default().with(options.filter.env_filter()).with(caps).with(lines)
}

fn is_allowed(target: &str, level: tracing::Level) -> bool {
    let belongs =
        |name: &str| target.strip_prefix(name).is_some_and(|rest| rest.is_empty() || rest.starts_with("::"));
    match CAPS.iter().find(|(name, _)| belongs(name)) {
        Some((_, cap)) => level <= *cap,
        None => true,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    /// Logs one event of each kind under a filter, and returns what was written.
    fn logged(filter: &str, form: Form) -> String {
        let written = Arc::new(Mutex::new(Vec::new()));
        let writer = {
            let written = Arc::clone(&written);
            move || Appender(Arc::clone(&written))
        };
        let filter = filter.parse().expect("a filter");
        let options = LogOptions { filter, format: LogFormat::Auto, color: true };
        tracing::subscriber::with_default(subscriber(&options, form, writer), || {
            let _call = tracing::info_span!("call", queue = "orders").entered();
            tracing::info!(port = 50051, "our info");
            tracing::debug!("our debug");
            tracing::debug!(target: "tokio_postgres::query", "parameters [secret]");
            tracing::trace!(target: "tokio_postgres", "trace [secret]");
            tracing::info!(target: "tokio_postgres::connection", "NOTICE: [secret]");
            tracing::warn!(target: "tokio_postgres::connection", "database warning");
            tracing::debug!(target: "h2::codec::framed_write", "headers [secret]");
            tracing::debug!(target: "hyper::proto", "headers [secret]");
            tracing::debug!(target: "hyper_util::client", "headers [secret]");
            tracing::debug!(target: "rustls::server", "keys [secret]");
            tracing::info!(target: "sqlx::postgres::notice", "notice [secret]");
            tracing::warn!(target: "sqlx::query", "slow statement [secret]");
            tracing::debug!(target: "h2o", "not h2");
        });
        let bytes = written.lock().expect("not poisoned").clone();
        String::from_utf8(bytes).expect("UTF-8")
    }

    struct Appender(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Appender {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().expect("not poisoned").extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    const PLAIN: Form = Form::Text { color: false };

    #[test]
    fn no_filter_can_make_secrets_appear() {
        for filter in [
            "trace",
            "debug,tokio_postgres=trace",
            "tokio_postgres::query=trace,tokio_postgres::connection=trace",
            "h2=trace,h2::codec::framed_write=trace,hyper=trace,hyper_util=trace,rustls=trace,sqlx=trace",
            "sqlx::query=trace,sqlx::postgres::notice=trace",
            "info,[call]=trace",
            "[call{queue=orders}]=trace",
            "tokio_postgres[call]=trace",
        ] {
            let text = logged(filter, PLAIN);
            assert!(!text.contains("secret"), "{filter}: {text}");
        }
    }

    #[test]
    fn the_filter_is_obeyed_below_the_caps() {
        let text = logged("info", PLAIN);
        assert!(text.contains("our info") && text.contains("database warning"), "{text}");
        assert!(!text.contains("our debug"), "{text}");
        let text = logged("debug", PLAIN);
        assert!(text.contains("our debug") && text.contains("not h2"), "{text}");
        assert_eq!(logged("off", PLAIN), "");
        assert!(!logged("info,tokio_postgres=error", PLAIN).contains("database warning"));
    }

    #[test]
    fn text_is_for_people_and_times_are_utc() {
        let text = logged("info", PLAIN);
        let (time, rest) = text.split_once("  INFO ").expect("a time and a level");
        assert!(time.len() == 27 && time.as_bytes()[10] == b'T' && time.ends_with('Z'), "{time}");
        assert!(rest.contains("our info port=50051"), "{rest}");
        assert!(!text.contains('\u{1b}'), "{text}");
        assert!(logged("info", Form::Text { color: true }).contains('\u{1b}'));
    }

    #[test]
    fn json_is_one_flat_object_a_line() {
        let text = logged("info", Form::Json);
        let line = text.lines().next().expect("a line");
        assert!(line.starts_with(r#"{"timestamp":"2"#) && line.ends_with('}'), "{line}");
        for field in
            [r#""level":"INFO""#, r#""message":"our info""#, r#""port":50051"#, r#""queue":"orders""#]
        {
            assert!(line.contains(field), "{field}: {line}");
        }
    }
}
