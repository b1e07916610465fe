//! Axes: from values to places, and the ticks between.

/// An axis with logarithmic steps. All that is drawn here spans orders of magnitude.
#[derive(Clone, Debug)]
pub(super) struct Scale {
    low: f64,
    high: f64,
    /// Pixels of both ends.
    place: (f64, f64),
    ticks: Vec<f64>,
}

impl Scale {
    /// An axis for these values, from power of ten to power of ten. Values that are not positive have no place.
    pub(super) fn decades(values: impl Iterator<Item = f64>, place: (f64, f64)) -> Self {
        let (low, high) = span(values);
        let (first, mut last) = (low.log10().floor(), high.log10().ceil());
        if last - first < 1.0 {
            last = first + 1.0;
        }
        let ticks = steps(first, last).map(|power| 10_f64.powf(power)).collect();
        Self { low: 10_f64.powf(first), high: 10_f64.powf(last), place, ticks }
    }

    /// An axis that ends where the values do, with a tick at each of them: for values that were chosen.
    pub(super) fn chosen(values: impl Iterator<Item = f64>, place: (f64, f64)) -> Self {
        let mut ticks: Vec<f64> = values.filter(|value| *value > 0.0).collect();
        ticks.sort_unstable_by(f64::total_cmp);
        ticks.dedup();
        let (low, high) = span(ticks.iter().copied());
        Self { low, high: if high > low { high } else { low * 2.0 }, place, ticks }
    }

    /// Where a value is; what is beyond an end is at the end.
    pub(super) fn at(&self, value: f64) -> f64 {
        let part = (value.max(self.low) / self.low).ln() / (self.high / self.low).ln();
        self.place.0 + part.clamp(0.0, 1.0) * (self.place.1 - self.place.0)
    }

    /// The lowest value.
    pub(super) const fn low(&self) -> f64 {
        self.low
    }

    /// Where lines are drawn and labels are.
    pub(super) fn ticks(&self) -> impl Iterator<Item = (f64, f64)> {
        self.ticks.iter().map(|tick| (*tick, self.at(*tick)))
    }
}

fn steps(first: f64, last: f64) -> impl Iterator<Item = f64> {
    std::iter::successors(Some(first), |power| Some(power + 1.0)).take_while(move |power| *power <= last)
}

fn span(values: impl Iterator<Item = f64>) -> (f64, f64) {
    let positive = values.filter(|value| *value > 0.0 && value.is_finite());
    let (low, high) =
        positive.fold((f64::INFINITY, 0.0_f64), |(low, high), value: f64| (low.min(value), high.max(value)));
    if high > 0.0 { (low, high) } else { (1.0, 10.0) }
}

/// A number in few characters: 1e-4, 0.5, 12, 340, 5.2k, 1.5M.
pub(super) fn short(value: f64) -> String {
    if value > 0.0 && value < 0.000_95 {
        return format!("{value:.0e}");
    }
    let (value, unit) = match value {
        value if value >= 999_500.0 => (value / 1e6, "M"),
        value if value >= 9_995.0 => (value / 1e3, "k"),
        value => (value, ""),
    };
    let digits = match value {
        value if value >= 99.5 => 0,
        value if value >= 9.95 => 1,
        value if value >= 0.1 => 2,
        _ => 3,
    };
    let text = format!("{value:.digits$}");
    let text = if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.') } else { &text };
    format!("{text}{unit}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_between_whole_decades() {
        let scale = Scale::decades([30.0, 4000.0, 0.0].into_iter(), (0.0, 300.0));
        assert!(scale.ticks().map(|(value, _)| value.round()).eq([10.0, 100.0, 1000.0, 10_000.0]));
        assert!((scale.at(100.0) - 100.0).abs() < 1e-9, "{}", scale.at(100.0));
        assert_eq!((scale.at(0.0), scale.at(1e9)), (0.0, 300.0));
        let nothing = Scale::decades([].into_iter(), (0.0, 1.0));
        assert_eq!(nothing.ticks().count(), 2);
    }

    #[test]
    fn chosen_values_have_ticks() {
        let scale = Scale::chosen([2.0, 0.5, 8.0, 2.0].into_iter(), (400.0, 0.0));
        assert!(scale.ticks().map(|(value, _)| value).eq([0.5, 2.0, 8.0]));
        assert!((scale.at(2.0) - 200.0).abs() < 1e-9);
        assert!(Scale::chosen([4.0].into_iter(), (0.0, 9.0)).at(4.0).abs() < 1e-9);
    }

    #[test]
    fn numbers_are_short() {
        for (value, text) in [
            (0.5, "0.5"),
            (0.000_01, "1e-5"),
            (0.001, "0.001"),
            (0.05, "0.05"),
            (12.34, "12.3"),
            (100.0, "100"),
            (1000.0, "1000"),
            (52_340.0, "52.3k"),
            (100_000.0, "100k"),
            (1.5e6, "1.5M"),
            (0.0, "0"),
        ] {
            assert_eq!(short(value), text);
        }
    }
}
