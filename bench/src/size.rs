//! Sizes as people write and read them.

use std::fmt;
use std::str::FromStr;

/// A number of bytes, written as `64M`, `1G`, `512MiB` or `4096`; units are powers of 1024.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize,
)]
#[serde(transparent)]
pub(crate) struct Size {
    /// The number of bytes.
    pub(crate) bytes: u64,
}

const UNITS: [(&str, u64); 4] = [("T", 1 << 40), ("G", 1 << 30), ("M", 1 << 20), ("K", 1 << 10)];

impl Size {
    /// `mib` times 2^20 bytes.
    pub(crate) const fn mib(mib: u64) -> Self {
        Self { bytes: mib << 20 }
    }
}

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let digits = text.trim_end_matches(|c: char| !c.is_ascii_digit());
        let unit = text[digits.len()..].to_ascii_uppercase();
        let factor = match unit.trim_end_matches('B').trim_end_matches('I') {
            "" => 1,
            letter => UNITS
                .iter()
                .find_map(|(name, factor)| (*name == letter).then_some(*factor))
                .ok_or_else(|| format!("`{unit}` is no unit of size; write K, M, G or T"))?,
        };
        let number: u64 = digits.parse().map_err(|_| format!("`{text}` is no size; write one like 512M"))?;
        let bytes =
            number.checked_mul(factor).ok_or_else(|| format!("`{text}` is more than 64 bits can say"))?;
        Ok(Self { bytes })
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let unit =
            UNITS.iter().find(|(_, factor)| self.bytes >= *factor && self.bytes.is_multiple_of(*factor));
        match unit {
            Some((name, factor)) => write!(f, "{} {name}iB", self.bytes / factor),
            None => write!(f, "{} B", self.bytes),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_people_write() {
        for (text, bytes) in
            [("4096", 4096), ("4k", 4096), ("64M", 64 << 20), ("1GiB", 1 << 30), ("2Gb", 2 << 30), ("7B", 7)]
        {
            assert_eq!(text.parse(), Ok(Size { bytes }), "{text}");
        }
        for text in ["", "M", "1X", "-1", "1.5G", "99999999T"] {
            assert!(text.parse::<Size>().is_err(), "{text}");
        }
    }

    #[test]
    fn prints_the_largest_whole_unit() {
        assert_eq!(Size::mib(512).to_string(), "512 MiB");
        assert_eq!(Size::mib(1024).to_string(), "1 GiB");
        assert_eq!(Size { bytes: 1000 }.to_string(), "1000 B");
    }
}
