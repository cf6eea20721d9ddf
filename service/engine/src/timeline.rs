//! Where the time of a restore, and of a freeze window, goes.

use std::time::Instant;

/// Time of each stage, microseconds.
pub type Laps = Vec<(String, u64)>;

/// Measures stages one after the other.
#[derive(Debug)]
pub struct Timeline {
    last: Instant,
    laps: Laps,
}

impl Timeline {
    /// The first stage begins now.
    pub fn start() -> Self {
        Self { last: Instant::now(), laps: Laps::new() }
    }

    /// A stage ends, and the next begins.
    pub fn lap(&mut self, stage: &str) {
        self.laps.push((stage.to_owned(), self.last.elapsed().as_micros() as u64));
        self.last = Instant::now();
    }

    /// Adds the stages that another program measured within the stage that ends now.
    pub fn within(&mut self, stage: &str, inner: &Laps) {
        self.laps.extend(inner.iter().map(|(name, usec)| (format!("{stage}.{name}"), *usec)));
        self.lap(stage);
    }

    /// The stages so far.
    pub fn laps(self) -> Laps {
        self.laps
    }
}

/// One line for the journal: `check 1200, stop 5300, …`, microseconds.
pub fn line(laps: &Laps) -> String {
    laps.iter().map(|(stage, usec)| format!("{stage} {usec}")).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stages_are_told_in_order_with_those_inside() {
        let mut time = Timeline::start();
        time.lap("check");
        time.within("rebuild", &vec![("grow".into(), 7)]);
        let laps = time.laps();
        let names: Vec<&str> = laps.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["check", "rebuild.grow", "rebuild"]);
        assert!(line(&laps).contains("rebuild.grow 7, "));
    }
}
