//! Sizes and devices as people write them: `512M`, `1.5G`, `lz4`, `lz4:cap=1G`, `file:path=/var/tmp`.
//!
//! A [`DeviceSpec`] is complete: what the text left open was filled in when it was parsed. Its [`Display`](fmt::Display)
//! form names everything and parses back to the same value, on any machine; so it can be handed to another process.

use std::fmt;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};

use thiserror::Error;

use crate::rehearsal::Rehearsal;

/// Binary unit suffixes with their powers of 1024.
const UNITS: [(char, u32); 5] = [('B', 0), ('K', 1), ('M', 2), ('G', 3), ('T', 4)];

/// Why a text is not a size.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum SizeError {
    /// There is no number in front.
    #[error("'{0}' is not a size: write a number and K, M, G or T, like 512M or 1.5G")]
    NotANumber(String),
    /// What follows the number is not a unit.
    #[error(
        "'{text}': unknown unit '{unit}': use K, M, G or T (1024-based; KiB, MiB, GiB and TiB mean the same)"
    )]
    UnknownUnit {
        /// All of it.
        text: String,
        /// The part that was not understood.
        unit: String,
    },
    /// Bytes cannot be divided.
    #[error("'{0}': a fraction needs a unit, like 1.5G")]
    FractionOfByte(String),
    /// More than 64 bits.
    #[error("'{0}' is more than any machine has")]
    TooLarge(String),
}

/// Reads a size in bytes: a decimal number, possibly with a fraction, and K, M, G or T (powers of 1024), which may be
/// followed by `iB`. A number alone, or with `B`, counts bytes.
///
/// # Errors
/// Anything else, see [`SizeError`].
pub fn parse_size(text: &str) -> Result<u64, SizeError> {
    let number_len = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(number_len);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty() || fraction.contains('.') || number.ends_with('.') {
        return Err(SizeError::NotANumber(text.to_owned()));
    }
    let power = parse_unit(unit)
        .ok_or_else(|| SizeError::UnknownUnit { text: text.to_owned(), unit: unit.to_owned() })?;
    if power == 0 && !fraction.is_empty() {
        return Err(SizeError::FractionOfByte(text.to_owned()));
    }
    scale(whole, fraction, 1 << (10 * power)).ok_or_else(|| SizeError::TooLarge(text.to_owned()))
}

/// The power of 1024 that a suffix stands for.
fn parse_unit(unit: &str) -> Option<u32> {
    let mut rest = unit.chars();
    let Some(letter) = rest.next() else { return Some(0) };
    let (_, power) = *UNITS.iter().find(|(name, _)| *name == letter.to_ascii_uppercase())?;
    match rest.as_str() {
        "" => Some(power),
        "iB" if power > 0 => Some(power),
        _ => None,
    }
}

/// `whole.fraction * unit`, rounded down; `None` when it does not fit.
fn scale(whole: &str, fraction: &str, unit: u64) -> Option<u64> {
    let mut bytes = whole.parse::<u64>().ok()?.checked_mul(unit)?;
    // Twelve digits are finer than a byte of a tebibyte, and keep the product below in 128 bits.
    let fraction = &fraction[..fraction.len().min(12)];
    if !fraction.is_empty() {
        let digits = u128::from(fraction.parse::<u64>().ok()?);
        let part = digits * u128::from(unit) / 10_u128.pow(u32::try_from(fraction.len()).ok()?);
        bytes = bytes.checked_add(u64::try_from(part).ok()?)?;
    }
    Some(bytes)
}

/// Bytes for people: `1.5 GiB`. Not exact.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ByteSize(pub u64);

impl fmt::Display for ByteSize {
    #[expect(clippy::cast_precision_loss, reason = "three digits are shown")]
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut value = self.0 as f64;
        let mut unit = "B";
        for next in ["KiB", "MiB", "GiB", "TiB"] {
            // 1023.6 would be shown as 1024.
            if value < 1023.5 {
                break;
            }
            (value, unit) = (value / 1024.0, next);
        }
        let decimals = usize::from(unit != "B" && value < 99.95);
        let text = format!("{value:.decimals$} {unit}");
        f.pad(&text.replace(".0 ", " "))
    }
}

/// Why a text does not name a device.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum SpecError {
    /// No such device.
    #[error("unknown device '{0}': this build has lz4 and file")]
    UnknownDevice(String),
    /// The device has no such option.
    #[error("device {device} has no option '{option}': it knows {known}, and {}", Rehearsal::KNOWN)]
    UnknownOption {
        /// The device.
        device: &'static str,
        /// What was asked for.
        option: String,
        /// What there is.
        known: &'static str,
    },
    /// The option was given twice.
    #[error("device {device}: option '{option}' is given twice")]
    Repeated {
        /// The device.
        device: &'static str,
        /// The option.
        option: String,
    },
    /// The option's value is not a size.
    #[error("device {device}, option {option}: {source}")]
    Size {
        /// The device.
        device: &'static str,
        /// The option.
        option: &'static str,
        /// What is wrong with it.
        source: SizeError,
    },
    /// The option's value is not a whole number.
    #[error("device {device}, option {option}: '{value}' is not a whole number")]
    Count {
        /// The device.
        device: &'static str,
        /// The option.
        option: &'static str,
        /// What was given.
        value: String,
    },
    /// The option's value is neither yes nor no.
    #[error("device {device}, option {option}: '{value}' is neither yes nor no")]
    YesOrNo {
        /// The device.
        device: &'static str,
        /// The option.
        option: &'static str,
        /// What was given.
        value: String,
    },
    /// The device cannot be so small or so large.
    #[error(
        "device {device}: a capacity of {} is out of range: choose one from {} to {}",
        ByteSize(*capacity_bytes),
        ByteSize(*range.start()),
        ByteSize(*range.end())
    )]
    Capacity {
        /// The device.
        device: &'static str,
        /// What was asked for, in bytes.
        capacity_bytes: u64,
        /// What can be.
        range: RangeInclusive<u64>,
    },
    /// A file needs a directory.
    #[error("device file: say in which directory, like file:path=/var/tmp")]
    NoPath,
    /// The directory cannot be used.
    #[error("device file, option path: {}: {why}", path.display())]
    Path {
        /// What was given.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
}

const LZ4_BYTES: RangeInclusive<u64> = 1 << 20..=512 << 30;
const FILE_BYTES: RangeInclusive<u64> = 1 << 20..=16 << 40;
/// The longest [shown form](DeviceSpec) of a device, in bytes.
pub const MAX_SPEC_BYTES: usize = 512;

/// What a device keeps its pages in.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Backing {
    /// RAM that holds pages compressed.
    Lz4 {
        /// The most memory that the compressed pages may take, in bytes, in each process.
        capacity_bytes: u64,
    },
    /// A file without a name.
    File {
        /// The directory that it is made in, from the root on.
        dir: PathBuf,
        /// The largest that it may become, in bytes, in each process.
        capacity_bytes: u64,
        /// Whether pages are compressed in it.
        compress: bool,
    },
}

/// A device with all its options.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct DeviceSpec {
    /// What it is.
    pub backing: Backing,
    /// Seconds after which a transfer is given up that has not returned; 0 for never. `None`: what the device has by itself, which
    /// is 30 for a file.
    pub patience_s: Option<u64>,
    /// What it does wrong on purpose.
    pub rehearsal: Rehearsal,
}

impl From<Backing> for DeviceSpec {
    /// A device that does not fail on purpose.
    fn from(backing: Backing) -> Self {
        Self { backing, patience_s: None, rehearsal: Rehearsal::default() }
    }
}

impl DeviceSpec {
    /// Reads `NAME[:OPTION=VALUE[,OPTION=VALUE..]]`. `physical_bytes` is the machine's memory, of which defaults are made.
    ///
    /// # Errors
    /// An unknown device or option, or a value that makes no sense, see [`SpecError`].
    pub fn parse(text: &str, physical_bytes: u64) -> Result<Self, SpecError> {
        let (name, options) = text.split_once(':').unwrap_or((text, ""));
        let spec = match name {
            "lz4" => Self::parse_lz4(options, physical_bytes),
            "file" => Self::parse_file(options),
            _ => return Err(SpecError::UnknownDevice(name.to_owned())),
        }?;
        let range = match spec.backing {
            Backing::Lz4 { .. } => LZ4_BYTES,
            Backing::File { .. } => FILE_BYTES,
        };
        let capacity_bytes = spec.capacity_bytes();
        if range.contains(&capacity_bytes) {
            Ok(spec)
        } else {
            Err(SpecError::Capacity { device: spec.name(), capacity_bytes, range })
        }
    }

    /// The device's name, without its options.
    pub const fn name(&self) -> &'static str {
        match self.backing {
            Backing::Lz4 { .. } => "lz4",
            Backing::File { .. } => "file",
        }
    }

    /// The most room that the device takes, in bytes, in each process: of RAM, or of a file system.
    pub const fn capacity_bytes(&self) -> u64 {
        match self.backing {
            Backing::Lz4 { capacity_bytes } | Backing::File { capacity_bytes, .. } => capacity_bytes,
        }
    }

    fn parse_lz4(options: &str, physical_bytes: u64) -> Result<Self, SpecError> {
        let mut options = Options::new("lz4", "cap=SIZE, patience=SECONDS", options)?;
        let default = (physical_bytes / 2).clamp(*LZ4_BYTES.start(), *LZ4_BYTES.end());
        let capacity_bytes = options.size("cap")?.unwrap_or(default);
        Self::with_rest(Backing::Lz4 { capacity_bytes }, options)
    }

    fn parse_file(options: &str) -> Result<Self, SpecError> {
        let mut options =
            Options::new("file", "path=DIRECTORY, cap=SIZE, compress=yes|no, patience=SECONDS", options)?;
        let dir = absolute(Path::new(options.take("path").ok_or(SpecError::NoPath)?))?;
        let capacity_bytes = match options.size("cap")? {
            Some(bytes) => bytes,
            None => half_of_what_is_free(&dir)?,
        };
        let compress = options.yes_or_no("compress")?.unwrap_or(true);
        let spec = Self::with_rest(Backing::File { dir: dir.clone(), capacity_bytes, compress }, options)?;
        let text = spec.to_string();
        let why = match text.len() {
            _ if text.contains('\n') => "the path has a line break",
            _ if text.contains('\t') => "the path has a tab",
            ..=MAX_SPEC_BYTES => return Ok(spec),
            _ => "the path is too long",
        };
        Err(SpecError::Path { path: dir, why: why.to_owned() })
    }

    /// With the options that every device has.
    fn with_rest(backing: Backing, mut options: Options<'_>) -> Result<Self, SpecError> {
        let patience_s = options.count("patience")?;
        let rehearsal = Rehearsal::read(|option| options.count(option))?;
        options.end()?;
        Ok(Self { backing, patience_s, rehearsal })
    }
}

/// Options as they were written, each once.
struct Options<'a> {
    device: &'static str,
    /// What the device knows, for a message.
    known: &'static str,
    options: Vec<(&'a str, &'a str)>,
}

impl<'a> Options<'a> {
    fn new(device: &'static str, known: &'static str, text: &'a str) -> Result<Self, SpecError> {
        let mut options = Vec::new();
        for option in text.split(',').filter(|option| !option.is_empty()) {
            let (name, value) = option.split_once('=').ok_or_else(|| SpecError::UnknownOption {
                device,
                option: option.to_owned(),
                known,
            })?;
            if options.iter().any(|(other, _)| *other == name) {
                return Err(SpecError::Repeated { device, option: name.to_owned() });
            }
            options.push((name, value));
        }
        Ok(Self { device, known, options })
    }

    fn take(&mut self, name: &str) -> Option<&'a str> {
        let at = self.options.iter().position(|(this, _)| *this == name)?;
        Some(self.options.remove(at).1)
    }

    fn size(&mut self, option: &'static str) -> Result<Option<u64>, SpecError> {
        let size = self.take(option).map(parse_size).transpose();
        size.map_err(|source| SpecError::Size { device: self.device, option, source })
    }

    fn count(&mut self, option: &'static str) -> Result<Option<u64>, SpecError> {
        let Some(value) = self.take(option) else { return Ok(None) };
        let count = value.parse().map_err(|_| SpecError::Count {
            device: self.device,
            option,
            value: value.to_owned(),
        });
        count.map(Some)
    }

    fn yes_or_no(&mut self, option: &'static str) -> Result<Option<bool>, SpecError> {
        let answer = self.take(option).map(|value| match value {
            "yes" => Ok(true),
            "no" => Ok(false),
            _ => Err(SpecError::YesOrNo { device: self.device, option, value: value.to_owned() }),
        });
        answer.transpose()
    }

    /// What is left nobody knows.
    fn end(self) -> Result<(), SpecError> {
        match self.options.first() {
            None => Ok(()),
            Some((name, value)) => Err(SpecError::UnknownOption {
                device: self.device,
                option: format!("{name}={value}"),
                known: self.known,
            }),
        }
    }
}

/// From the root on: programs change their directory.
fn absolute(path: &Path) -> Result<PathBuf, SpecError> {
    let error = |why: &dyn fmt::Display| SpecError::Path { path: path.to_owned(), why: why.to_string() };
    let absolute = std::path::absolute(path).map_err(|source| error(&source))?;
    match absolute.to_str() {
        Some(text) if !text.contains(',') => Ok(absolute),
        _ => Err(error(&"a path without commas, in UTF-8, is needed")),
    }
}

/// At most what a table can be made for.
fn half_of_what_is_free(dir: &Path) -> Result<u64, SpecError> {
    let free = rustix::fs::statvfs(dir)
        .map_err(|errno| SpecError::Path { path: dir.to_owned(), why: errno.to_string() })?;
    Ok((free.f_bavail.saturating_mul(free.f_frsize) / 2).min(*FILE_BYTES.end()))
}

impl fmt::Display for DeviceSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.backing {
            Backing::Lz4 { capacity_bytes } => write!(f, "lz4:cap={capacity_bytes}")?,
            Backing::File { dir, capacity_bytes, compress } => {
                let compress = if *compress { "" } else { ",compress=no" };
                write!(f, "file:path={},cap={capacity_bytes}{compress}", dir.display())?;
            }
        }
        if let Some(seconds) = self.patience_s {
            write!(f, ",patience={seconds}")?;
        }
        write!(f, "{}", self.rehearsal)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;
    const GIB: u64 = 1 << 30;

    #[test]
    fn sizes_are_powers_of_1024() {
        for (text, bytes) in [
            ("0", 0),
            ("4096", 4096),
            ("4096B", 4096),
            ("3k", 3 << 10),
            ("512M", 512 * MIB),
            ("512MiB", 512 * MIB),
            ("2g", 2 * GIB),
            ("1.5G", 3 * GIB / 2),
            ("0.1G", GIB / 10),
            ("1.000000000000000001K", 1024),
            ("16T", 16 << 40),
        ] {
            assert_eq!(parse_size(text), Ok(bytes), "{text}");
        }
    }

    #[test]
    fn what_is_no_size_is_refused_with_the_reason() {
        let kind = |text: &str| parse_size(text).expect_err(text);
        for text in ["", "M", "-1M", ".5G", "1..5G", "1.G", " 1M", "0x10"] {
            let error = kind(text);
            assert!(
                matches!(error, SizeError::NotANumber(_) | SizeError::UnknownUnit { .. }),
                "{text}: {error}"
            );
        }
        assert!(matches!(kind("10MB"), SizeError::UnknownUnit { unit, .. } if unit == "MB"));
        assert!(matches!(kind("10BiB"), SizeError::UnknownUnit { .. }));
        assert!(matches!(kind("1.5"), SizeError::FractionOfByte(_)));
        assert!(matches!(kind("99999999999999999999"), SizeError::TooLarge(_)));
        assert!(matches!(kind("17000000T"), SizeError::TooLarge(_)));
    }

    #[test]
    fn bytes_are_shown_with_two_or_three_digits() {
        for (bytes, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1 KiB"),
            (1536, "1.5 KiB"),
            (512 * MIB, "512 MiB"),
            (1024 * MIB - 1, "1 GiB"),
            (1_650_000_000, "1.5 GiB"),
            (5 << 40, "5 TiB"),
        ] {
            assert_eq!(ByteSize(bytes).to_string(), text);
        }
    }

    #[test]
    fn lz4_takes_half_of_the_machine_unless_told() {
        let lz4 = |capacity_bytes| Ok(Backing::Lz4 { capacity_bytes }.into());
        assert_eq!(DeviceSpec::parse("lz4", 8 * GIB), lz4(4 * GIB));
        assert_eq!(DeviceSpec::parse("lz4:cap=1G", 8 * GIB), lz4(GIB));
    }

    #[test]
    fn the_default_is_in_range_on_any_machine() {
        for physical_bytes in [0, 1, 64 << 40] {
            let spec = DeviceSpec::parse("lz4", physical_bytes).unwrap();
            assert_eq!(DeviceSpec::parse(&spec.to_string(), 0), Ok(spec));
        }
    }

    #[test]
    fn the_shown_form_parses_back() {
        for text in [
            "lz4",
            "lz4:",
            "lz4:cap=1.3G",
            "lz4:lost-after=7,cap=1G",
            "lz4:stuck-after=0,patience=0",
            "lz4:seed=3,corrupt=9,io-errors=1,latency=2",
        ] {
            let spec = DeviceSpec::parse(text, 3 * GIB).unwrap();
            assert_eq!(DeviceSpec::parse(&spec.to_string(), 0), Ok(spec));
        }
        let spec = DeviceSpec::parse("file:path=/tmp,cap=1G,io-errors=5,lost-after=3", 0).unwrap();
        assert_eq!(spec.to_string(), "file:path=/tmp,cap=1073741824,lost-after=3,io-errors=5");
        let spec =
            |compress| DeviceSpec::parse(&format!("file:path=/tmp,cap=1G,compress={compress}"), 0).unwrap();
        assert_eq!(spec("yes").to_string(), "file:path=/tmp,cap=1073741824");
        assert_eq!(spec("no").to_string(), "file:path=/tmp,cap=1073741824,compress=no");
        assert_eq!(DeviceSpec::parse(&spec("no").to_string(), 0), Ok(spec("no")));
    }

    #[test]
    fn a_file_lies_in_a_directory_that_does_not_change() {
        let spec = DeviceSpec::parse("file:cap=2M,path=some/where", 0).unwrap();
        let Backing::File { dir, capacity_bytes, .. } = spec.backing else { panic!("another device") };
        assert_eq!((dir, capacity_bytes), (std::env::current_dir().unwrap().join("some/where"), 2 * MIB));
        let spec = DeviceSpec::parse("file:path=/tmp", 0).unwrap();
        assert!(FILE_BYTES.contains(&spec.capacity_bytes()), "what is free, in part: {spec}");
    }

    #[test]
    fn wrong_specs_say_what_is_wrong() {
        let text = |spec: &str| DeviceSpec::parse(spec, GIB).expect_err(spec).to_string();
        assert_eq!(text("floppy"), "unknown device 'floppy': this build has lz4 and file");
        assert!(text("lz4:level=3").contains("no option 'level=3': it knows cap=SIZE"));
        assert!(text("lz4:cap").contains("no option 'cap'"));
        assert!(text("lz4:cap=much").contains("option cap: 'much' is not a size"));
        assert!(text("lz4:cap=1M,cap=2M").contains("option 'cap' is given twice"));
        assert!(text("lz4:cap=1K").contains("1 KiB is out of range: choose one from 1 MiB to 512 GiB"));
        assert!(text("lz4:cap=1T").contains("out of range"));
        assert!(text("file").contains("say in which directory, like file:path=/var/tmp"));
        assert!(
            text("file:path=/tmp,size=1G").contains("no option 'size=1G': it knows path=DIRECTORY, cap=SIZE")
        );
        assert!(text("file:path=/tmp,compress=lz4").contains("option compress: 'lz4' is neither yes nor no"));
        assert!(text("file:path=/no/where").contains("option path: /no/where: No such file"));
        assert!(
            text("file:path=/tmp,cap=17T")
                .contains("17 TiB is out of range: choose one from 1 MiB to 16 TiB")
        );
        assert!(text(&format!("file:cap=1G,path=/{}", "x".repeat(600))).contains("the path is too long"));
        assert!(text("file:cap=1G,path=/a\nb").contains("the path has a line break"));
        assert!(text("file:cap=1G,path=/a\tb").contains("the path has a tab"));
        assert!(text("lz4:lost-after=soon").contains("option lost-after: 'soon' is not a whole number"));
    }
}
