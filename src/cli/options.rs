//! The table of all options, for documents that show it.

use crate::config::{SETTINGS, Setting};

use super::arguments::program;

/// One option of `pgmq-grpc serve`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OptionRow {
    /// The flag with its dashes, such as `--pool-size`.
    pub flag: String,
    /// The environment variable, such as `PGMQ_GRPC_POOL_SIZE`.
    pub variable: &'static str,
    /// A variable that counts when `variable` is unset, such as `DATABASE_URL`.
    pub weaker_variable: Option<&'static str>,
    /// The key in the file, such as `pool-size`; `--config` has none.
    pub file_key: Option<&'static str>,
    /// The default as one would write it.
    pub default: Option<&'static str>,
    /// What it does, in one or two sentences.
    pub meaning: &'static str,
}

/// Returns the options that the command line really has, in the order of `--help`.
pub fn option_table() -> Vec<OptionRow> {
    let program = program();
    program.get_arguments().filter_map(|arg| row(arg.get_long()?)).collect()
}

fn row(flag: &str) -> Option<OptionRow> {
    let setting: &Setting = SETTINGS.iter().find(|setting| setting.flag == flag)?;
    Some(OptionRow {
        flag: format!("--{flag}"),
        variable: setting.variable,
        weaker_variable: setting.weaker_variable,
        file_key: setting.in_file.then_some(setting.flag),
        default: setting.default,
        meaning: setting.meaning,
    })
}
