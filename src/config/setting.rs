//! What an option is: its names in each place, its default, its meaning. The options themselves are in `settings`.

use Group::{Database, Embedded, Limits, Logging, Serving};

/// One option: how it is named in each place, its default, and what it means.
#[derive(Debug, Clone, Copy)]
pub struct Setting {
    /// The flag without its dashes, such as `pool-size`; also its key in the file.
    pub flag: &'static str,
    /// The environment variable, such as `PGMQ_GRPC_POOL_SIZE`.
    pub variable: &'static str,
    /// A variable known to other programs too, such as `DATABASE_URL`, which counts when `variable` is unset.
    pub weaker_variable: Option<&'static str>,
    /// The word that stands for the value in `--help`.
    pub value_name: &'static str,
    /// The default as one would write it.
    pub default: Option<&'static str>,
    /// How many values it takes.
    pub shape: Shape,
    /// Whether its value must never be shown.
    pub secret: bool,
    /// Whether the file may have it.
    pub in_file: bool,
    /// The heading it stands under in `--help`.
    pub group: Group,
    /// What it does, in one or two sentences.
    pub meaning: &'static str,
}

/// How many values an option takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    /// One value.
    One,
    /// One or more: a repeated flag, a comma-separated variable, an array in the file.
    Many,
    /// A boolean, which the flag alone sets to true.
    Switch,
}

/// The headings of `--help`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Group {
    /// How the server serves.
    Serving,
    /// Which Postgres it uses.
    Database,
    /// The Postgres that it brings itself.
    Embedded,
    /// What bounds its use of resources.
    Limits,
    /// What it logs.
    Logging,
}

impl Group {
    /// The heading as people read it.
    pub fn heading(self) -> &'static str {
        match self {
            Serving => "Serving",
            Database => "Database",
            Embedded => "Embedded Postgres",
            Limits => "Limits",
            Logging => "Logging",
        }
    }
}

impl Setting {
    /// The flag and the variable, as sentences about the option name it.
    pub(super) fn names(&self) -> String {
        format!("--{} ({})", self.flag, self.variable)
    }

    pub(super) const fn new(
        flag: &'static str,
        variable: &'static str,
        group: Group,
        meaning: &'static str,
    ) -> Setting {
        Setting {
            flag,
            variable,
            weaker_variable: None,
            value_name: "VALUE",
            default: None,
            shape: Shape::One,
            secret: false,
            in_file: true,
            group,
            meaning,
        }
    }

    pub(super) const fn value(mut self, name: &'static str) -> Setting {
        self.value_name = name;
        self
    }

    pub(super) const fn default(mut self, text: &'static str) -> Setting {
        self.default = Some(text);
        self
    }

    pub(super) const fn weaker(mut self, variable: &'static str) -> Setting {
        self.weaker_variable = Some(variable);
        self
    }

    pub(super) const fn many(mut self) -> Setting {
        self.shape = Shape::Many;
        self
    }

    pub(super) const fn switch(mut self) -> Setting {
        self.shape = Shape::Switch;
        self.value("true|false").default("false")
    }

    pub(super) const fn secret(mut self) -> Setting {
        self.secret = true;
        self
    }

    pub(super) const fn not_in_file(mut self) -> Setting {
        self.in_file = false;
        self
    }
}
