//! What the user asked for, and how the programs of a run are told: as text in their environment.
//!
//! `NAME=VALUE` for each setting, and for each device, in order, with tabs between: who reads an environment line by line finds
//! one line. The supervisor writes it, who executes a program
//! passes it on. So it is as good as the `LD_PRELOAD` beside it: it comes from whoever executes the program, and from nobody else.

use std::fmt;
use std::str::FromStr;

use hmm_core::policy::Name;
use thiserror::Error;

use crate::spec::DeviceSpec;

/// Environment variable that has the configuration.
pub const CONFIG_ENV: &str = "HMM_CONFIG";

/// The budget of a run without one, in pages: all that an address space can hold.
pub const NO_BUDGET_PAGES: u64 = 1 << 36;

/// What happens when the budget is used up and no device has room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnFull {
    /// The process is ended, with a [`Verdict`](super::Verdict).
    Kill,
    /// The budget grows.
    Grow,
}

/// What the user asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunConfig {
    /// The budget: pages of managed memory and staging that may be resident, over all processes, or in each. [`NO_BUDGET_PAGES`]
    /// when there is none.
    pub ram_pages: u64,
    /// Whether each process has that budget to itself.
    pub per_process: bool,
    /// What happens when it cannot be held.
    pub on_full: OnFull,
    /// Where the rest lives, in order of preference; at most [`MAX_DEVICES`](super::MAX_DEVICES).
    pub devices: Vec<DeviceSpec>,
    /// Whether the programs find Linux's HMM test devices, `/dev/hmm_dmirror0` and on.
    pub dmirror: bool,
    /// Who decides what leaves, what comes ahead, and where it goes.
    pub policy: Name,
}

impl RunConfig {
    /// Whether memory is bounded. If not, only what a driver asks for is managed.
    pub const fn has_budget(&self) -> bool {
        self.ram_pages < NO_BUDGET_PAGES
    }
}

/// The text is no configuration, or one of another version.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{CONFIG_ENV} is not a configuration of this version of hmm: {what}")]
pub struct ConfigError {
    what: String,
}

impl fmt::Display for RunConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { ram_pages, per_process, on_full, devices, dmirror, policy } = self;
        let grow = *on_full == OnFull::Grow;
        write!(
            f,
            "ram={ram_pages}\tper-process={per_process}\tgrow={grow}\tdmirror={dmirror}\tpolicy={policy}"
        )?;
        devices.iter().try_for_each(|device| write!(f, "\tdevice={device}"))
    }
}

impl FromStr for RunConfig {
    type Err = ConfigError;

    fn from_str(text: &str) -> Result<Self, ConfigError> {
        let mut parts = text.split('\t');
        let on_full = |grow| if grow { OnFull::Grow } else { OnFull::Kill };
        Ok(Self {
            ram_pages: setting(parts.next(), "ram")?,
            per_process: setting(parts.next(), "per-process")?,
            on_full: setting(parts.next(), "grow").map(on_full)?,
            dmirror: setting(parts.next(), "dmirror")?,
            policy: setting(parts.next(), "policy")?,
            devices: parts
                .map(|part| setting(Some(part), "device").map(|Complete(spec)| spec))
                .collect::<Result<_, _>>()?,
        })
    }
}

/// The specification of a device that has all its options, so that the machine's size plays no part.
struct Complete(DeviceSpec);

impl FromStr for Complete {
    type Err = crate::spec::SpecError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        DeviceSpec::parse(text, 0).map(Self)
    }
}

fn setting<T: FromStr<Err: fmt::Display>>(part: Option<&str>, name: &str) -> Result<T, ConfigError> {
    let part = part.ok_or_else(|| ConfigError { what: format!("there is no {name}") })?;
    let value = part.split_once('=').filter(|(found, _)| *found == name).map(|(_, value)| value);
    let value = value.ok_or_else(|| ConfigError { what: format!("'{part}' is where {name} should be") })?;
    value.parse().map_err(|error| ConfigError { what: format!("{name}: {error}") })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> RunConfig {
        let device = |text| DeviceSpec::parse(text, 1 << 34).unwrap();
        RunConfig {
            ram_pages: 1000,
            per_process: true,
            on_full: OnFull::Grow,
            devices: vec![device("lz4:io-errors=7"), device("file:path=/tmp/a b=c,cap=1G,patience=5")],
            dmirror: true,
            policy: Name::Twice,
        }
    }

    #[test]
    fn what_is_written_is_read() {
        assert_eq!(config().to_string().parse(), Ok(config()));
        let other = RunConfig {
            devices: Vec::new(),
            per_process: false,
            on_full: OnFull::Kill,
            dmirror: false,
            ..config()
        };
        assert_eq!(other.to_string().parse(), Ok(other));
    }

    #[test]
    fn what_is_no_configuration_is_told() {
        let why = |text: &str| text.parse::<RunConfig>().unwrap_err().to_string();
        assert_eq!(
            why(""),
            "HMM_CONFIG is not a configuration of this version of hmm: '' is where ram should be"
        );
        assert!(why("ram=1\tper-process=false\tgrow=true").ends_with("there is no dmirror"));
        assert!(why("ram=x\tgrow=true").contains("ram: invalid digit"));
        assert!(why(&config().to_string().replace("twice", "lru")).contains("unknown policy 'lru'"));
        assert!(why(&config().to_string().replace("lz4:", "lz5:")).contains("device: "));
        assert!(why(&format!("{}\tmore", config())).ends_with("'more' is where device should be"));
    }
}
