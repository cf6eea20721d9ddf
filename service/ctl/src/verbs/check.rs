//! `check NAME`: exit status 4 if a checkpoint would be refused.

use std::process::ExitCode;

use crate::bus::none;
use crate::context::Context;
use crate::failure::{Failure, REFUSED};
use crate::output::{clean, page, print_json};
use crate::view;

/// What to check.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The group, or a service as a group of one
    name: String,
}

pub async fn run(args: Args, context: &Context) -> Result<ExitCode, Failure> {
    let bus = context.bus().await?;
    let (ok, problems) = bus.manager.check(&args.name, &none()).await?;
    let problems: Vec<_> = problems.into_iter().map(view::Problem::from).collect();
    let code = if ok { ExitCode::SUCCESS } else { ExitCode::from(REFUSED) };
    if context.json {
        print_json(&view::Check { ok, problems })?;
        return Ok(code);
    }
    let mut text: String = problems.iter().map(line).collect();
    text.push_str(match (ok, problems.is_empty()) {
        (true, true) => "Nothing stands against a checkpoint.\n",
        (true, false) => "A checkpoint can be taken.\n",
        (false, _) => "A checkpoint would be refused.\n",
    });
    page(context, &text)?;
    Ok(code)
}

/// What, on which unit, pid and object, why, and what to do.
fn line(problem: &view::Problem) -> String {
    let mut subject: Vec<String> = Vec::new();
    if !problem.unit.is_empty() {
        subject.push(problem.unit.clone());
    }
    if problem.pid != 0 {
        subject.push(format!("pid {}", problem.pid));
    }
    if !problem.object.is_empty() {
        subject.push(problem.object.clone());
    }
    let subject = if subject.is_empty() { String::new() } else { format!("{}: ", subject.join(", ")) };
    clean(&format!("{} [{}] {subject}{}; {}", problem.severity, problem.code, problem.text, problem.remedy))
        + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_problem_is_one_line_that_says_all() {
        let problem = view::Problem {
            code: "io-uring".into(),
            severity: "error".into(),
            unit: "a.service".into(),
            pid: 7,
            object: "fd 3".into(),
            text: "an io_uring\ncannot be captured".into(),
            remedy: "switch it off".into(),
        };
        assert_eq!(
            line(&problem),
            "error [io-uring] a.service, pid 7, fd 3: an io_uring cannot be captured; switch it off\n"
        );
    }
}
