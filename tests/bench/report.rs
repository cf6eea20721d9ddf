//! What a bench says: figures beside their targets as a table, and everything as JSON and as plots (SVG) in `target/bench`.

use std::path::{Path, PathBuf};

use comfy_table::{CellAlignment, Table, presets};
use plotters::prelude::*;
use serde_json::{Value, json};

/// What a figure has to be.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Target {
    /// At most this, in the figure's unit.
    AtMost(f64),
    /// At least this, in the figure's unit.
    AtLeast(f64),
}

/// One number of a run.
#[derive(Debug, Clone)]
pub(crate) struct Figure {
    /// What was measured.
    pub name: String,
    /// The median.
    pub value: f64,
    /// Its unit.
    pub unit: &'static str,
    /// What it has to be, if anything was promised.
    pub target: Option<Target>,
    /// What bounds it, measured in the same run, in the same unit.
    pub beside: Option<(&'static str, f64)>,
}

/// A figure against something.
#[derive(Debug, Clone)]
pub(crate) struct Curve {
    /// File name without a suffix, and the plot's title.
    pub name: &'static str,
    /// The axes' names with their units.
    pub axes: [&'static str; 2],
    /// Ascending in the first.
    pub points: Vec<[f64; 2]>,
}

/// Everything that a run of the benches found.
#[derive(Debug, Default)]
pub(crate) struct Report {
    figures: Vec<Figure>,
    curves: Vec<Curve>,
}

impl Target {
    fn met(self, value: f64) -> bool {
        match self {
            Self::AtMost(most) => value <= most,
            Self::AtLeast(least) => value >= least,
        }
    }

    fn words(self, unit: &str) -> String {
        let (sign, bound) = match self {
            Self::AtMost(most) => ("≤", most),
            Self::AtLeast(least) => ("≥", least),
        };
        format!("{sign} {} {unit}", (bound * 100.0).round() / 100.0)
    }
}

impl Curve {
    /// The exponent of a power law through the points: 1 is linear. Least squares of the logarithms.
    pub(crate) fn exponent(&self) -> f64 {
        let logs: Vec<_> = self.points.iter().map(|[x, y]| (x.ln(), y.ln())).collect();
        let n = logs.len() as f64;
        let (mx, my) = (logs.iter().map(|l| l.0).sum::<f64>() / n, logs.iter().map(|l| l.1).sum::<f64>() / n);
        let covariance: f64 = logs.iter().map(|(x, y)| (x - mx) * (y - my)).sum();
        covariance / logs.iter().map(|(x, _)| (x - mx).powi(2)).sum::<f64>()
    }
}

impl Report {
    /// Adds a figure and says it at once.
    pub(crate) fn figure(&mut self, figure: Figure) {
        eprintln!("  {}: {:.2} {}", figure.name, figure.value, figure.unit);
        self.figures.push(figure);
    }

    /// Adds a figure that nothing is promised of.
    pub(crate) fn plain(&mut self, name: impl Into<String>, value: f64, unit: &'static str) {
        self.figure(Figure { name: name.into(), value, unit, target: None, beside: None });
    }

    /// Adds a figure beside its target.
    pub(crate) fn promised(
        &mut self,
        name: impl Into<String>,
        value: f64,
        unit: &'static str,
        target: Target,
    ) {
        self.figure(Figure { name: name.into(), value, unit, target: Some(target), beside: None });
    }

    /// Adds a curve.
    pub(crate) fn curve(&mut self, curve: Curve) {
        self.curves.push(curve);
    }

    /// Prints the table; writes `report.json` and a plot for each curve. Gives the directory.
    pub(crate) fn finish(self) -> std::io::Result<PathBuf> {
        println!("{}", self.table());
        let dir = Path::new("target/bench");
        std::fs::create_dir_all(dir)?;
        let text = serde_json::to_string_pretty(&self.json())?;
        std::fs::write(dir.join("report.json"), text + "\n")?;
        for curve in self.curves.iter().filter(|curve| curve.points.len() > 1) {
            let path = dir.join(curve.name).with_extension("svg");
            plot(curve, &path).map_err(|e| std::io::Error::other(e.to_string()))?;
        }
        Ok(dir.to_owned())
    }

    fn table(&self) -> Table {
        let mut table = Table::new();
        table.load_style(presets::UTF8_HORIZONTAL_ONLY);
        table.set_header(["figure", "median", "target", "", "beside it, in the same run"]);
        for figure in &self.figures {
            let Figure { name, value, unit, target, beside } = figure;
            table.add_row([
                name.clone(),
                format!("{value:.2} {unit}"),
                target.map_or(String::new(), |target| target.words(unit)),
                target.map_or("", |target| if target.met(*value) { "✓" } else { "✗" }).to_owned(),
                beside.map_or(String::new(), |(what, other)| {
                    format!("{what}: {other:.2} {unit}, ratio {:.2}", value / other)
                }),
            ]);
        }
        if let Some(column) = table.column_mut(1) {
            column.set_cell_alignment(CellAlignment::Right);
        }
        table
    }

    fn json(&self) -> Value {
        let target = |target| match target {
            Target::AtMost(most) => json!({ "at_most": most }),
            Target::AtLeast(least) => json!({ "at_least": least }),
        };
        json!({
            "kernel": std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim(),
            "processors": std::thread::available_parallelism().map_or(0, usize::from),
            "figures": self.figures.iter().map(|f| json!({
                "name": f.name, "median": f.value, "unit": f.unit, "target": f.target.map(target),
                "met": f.target.map(|target| target.met(f.value)),
                "beside": f.beside.map(|(what, value)| json!({ "name": what, "value": value })),
            })).collect::<Vec<_>>(),
            "curves": self.curves.iter().map(|c| json!({
                "name": c.name, "axes": c.axes, "points": c.points, "exponent": c.exponent(),
            })).collect::<Vec<_>>(),
        })
    }
}

type PlotResult = Result<(), Box<dyn std::error::Error>>;

fn plot(curve: &Curve, path: &Path) -> PlotResult {
    let most = |axis: usize| curve.points.iter().map(|p| p[axis]).fold(0.0, f64::max) * 1.05;
    let area = SVGBackend::new(path, (720, 400)).into_drawing_area();
    area.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(&area)
        .caption(curve.name, ("sans-serif", 20))
        .margin(16)
        .x_label_area_size(40)
        .y_label_area_size(60)
        .build_cartesian_2d(0.0..most(0), 0.0..most(1))?;
    chart.configure_mesh().x_desc(curve.axes[0]).y_desc(curve.axes[1]).draw()?;
    let points = || curve.points.iter().map(|[x, y]| (*x, *y));
    chart.draw_series(LineSeries::new(points(), &BLUE))?;
    chart.draw_series(points().map(|at| Circle::new(at, 3, BLUE.filled())))?;
    area.present()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_exponent_is_that_of_the_power_law() {
        let curve = |power: i32| Curve {
            name: "test",
            axes: ["x", "y"],
            points: [1.0f64, 2.0, 5.0, 9.0].map(|x| [x, 3.0 * x.powi(power)]).to_vec(),
        };
        assert!((curve(1).exponent() - 1.0).abs() < 1e-9);
        assert!((curve(2).exponent() - 2.0).abs() < 1e-9);
    }
}
