//! `jobs`

use ckpt_dbus::names::{BUS_NAME, JOB_PREFIX, MANAGER_PATH};
use serde::Serialize;
use zbus::Variant;
use zbus::fdo::ObjectManagerProxy;

use crate::context::Context;
use crate::failure::Failure;
use crate::output::{page, print_json, table};

/// Nothing to say.
#[derive(Debug, clap::Args)]
pub struct Args {}

/// One job.
#[derive(Debug, Default, Serialize)]
struct Row {
    number: u32,
    #[serde(rename = "type")]
    kind: String,
    group: String,
    state: String,
    stage: String,
    progress: f64,
    bytes_done: u64,
    bytes_total: u64,
}

pub async fn run(_: Args, context: &Context) -> Result<(), Failure> {
    let bus = context.bus().await?;
    let manager =
        ObjectManagerProxy::builder(&bus.connection).destination(BUS_NAME).path(MANAGER_PATH).build().await?;
    let mut rows: Vec<Row> = Vec::new();
    for (path, interfaces) in manager.get_managed_objects().await? {
        let Some(number) = path.as_str().strip_prefix(JOB_PREFIX).and_then(|n| n.parse().ok()) else {
            continue;
        };
        let Some((_, properties)) = interfaces.iter().find(|(name, _)| name.as_str() == "org.ckpt.Job1")
        else {
            continue;
        };
        let mut row = Row { number, ..Row::default() };
        for (key, value) in properties {
            match (key.as_str(), &**value) {
                ("Type", Variant::Str(s)) => row.kind = s.to_string(),
                ("Group", Variant::Str(s)) => row.group = s.to_string(),
                ("State", Variant::Str(s)) => row.state = s.to_string(),
                ("Stage", Variant::Str(s)) => row.stage = s.to_string(),
                ("Progress", Variant::F64(f)) => row.progress = *f,
                ("BytesDone", Variant::U64(n)) => row.bytes_done = *n,
                ("BytesTotal", Variant::U64(n)) => row.bytes_total = *n,
                _ => {}
            }
        }
        rows.push(row);
    }
    rows.sort_by_key(|r| r.number);
    if context.json {
        return print_json(&rows);
    }
    if rows.is_empty() {
        return page(context, "No job runs.\n");
    }
    let lines = rows.iter().map(|r| {
        let progress = if r.bytes_total == 0 { "-".into() } else { format!("{:.0} %", r.progress * 100.0) };
        vec![
            r.number.to_string(),
            r.kind.clone(),
            r.group.clone(),
            r.state.clone(),
            r.stage.clone(),
            progress,
        ]
    });
    page(context, &table(&["JOB", "TYPE", "GROUP", "STATE", "STAGE", "PROGRESS"], &[0, 5], lines.collect()))
}
