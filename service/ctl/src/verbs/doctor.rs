//! `doctor`: whether this host can do it. Exit status 1 if something is missing.

mod host;
mod service;

use std::process::ExitCode;

use serde::Serialize;

use crate::context::Context;
use crate::failure::{FAILED, Failure};
use crate::output::{clean, page, print_json};

/// Nothing to say.
#[derive(Debug, clap::Args)]
pub struct Args {}

/// How a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Verdict {
    Ok,
    Warning,
    Error,
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct Finding {
    what: String,
    verdict: Verdict,
    text: String,
    remedy: String,
}

impl Finding {
    fn ok(what: &str, text: impl Into<String>) -> Self {
        Self { what: what.into(), verdict: Verdict::Ok, text: text.into(), remedy: String::new() }
    }

    fn warning(what: &str, text: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { what: what.into(), verdict: Verdict::Warning, text: text.into(), remedy: remedy.into() }
    }

    fn error(what: &str, text: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { what: what.into(), verdict: Verdict::Error, text: text.into(), remedy: remedy.into() }
    }
}

pub async fn run(_: Args, context: &Context) -> Result<ExitCode, Failure> {
    let mut findings = Vec::new();
    if context.host.is_none() {
        findings.extend(host::findings());
    }
    findings.extend(service::findings(context).await);
    let healthy = findings.iter().all(|f| f.verdict != Verdict::Error);
    let code = if healthy { ExitCode::SUCCESS } else { ExitCode::from(FAILED) };
    if context.json {
        print_json(&serde_json::json!({"ok": healthy, "findings": findings}))?;
    } else {
        page(context, &text(&findings))?;
    }
    Ok(code)
}

fn text(findings: &[Finding]) -> String {
    let width = findings.iter().map(|f| f.what.len()).max().unwrap_or(0);
    let lines = findings.iter().map(|f| {
        let mark = match f.verdict {
            Verdict::Ok => "ok     ",
            Verdict::Warning => "warning",
            Verdict::Error => "ERROR  ",
        };
        let remedy = if f.remedy.is_empty() { String::new() } else { format!("; {}", f.remedy) };
        clean(&format!("{mark}  {:width$}  {}{remedy}", f.what, f.text)) + "\n"
    });
    lines.collect()
}
