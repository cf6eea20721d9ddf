//! Which checkpoints are kept: a pure function of what there is and what `[retention]` says (ckpt-group(5)).
//!
//! ```text
//! keep_last = 2, keep_daily = 3        Mon 09:00   Tue 08:00  20:00   Wed 07:00  12:00  18:00
//!                                      daily       -          daily   -          last   newest
//! ```
//! A checkpoint is kept if any rule keeps it. A rule of hours, days, weeks, months or years keeps the newest one of each of so many
//! hours, …, that have any: a host that was off for a week loses nothing by it. What is kept is kept again when the
//! same is asked of what is left.

use std::collections::BTreeSet;

use jiff::Timestamp;
use jiff::tz::TimeZone;
use serde::{Deserialize, Serialize};

use crate::config::RetentionConfig;

/// Undo snapshots that are kept where other rules are given and `keep_undo` is not.
pub const DEFAULT_UNDO: u32 = 3;

/// What there is: a checkpoint or an undo snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    /// Its id.
    pub id: String,
    /// The instant it shows.
    pub created: Timestamp,
    /// Whether it is an undo snapshot: files that a restore put aside.
    pub undo: bool,
}

/// What becomes of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Action {
    /// It stays.
    Keep,
    /// It goes; those that rest on it are merged first.
    Remove,
}

/// One decision, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decision {
    /// Of which checkpoint or undo snapshot.
    pub id: String,
    /// The instant it shows.
    pub created: Timestamp,
    /// What becomes of it.
    pub action: Action,
    /// The first rule that keeps it: `newest`, `keep_last`, `keep_hourly`, …, `keep_undo`, `not-configured`; `none` if none does.
    pub rule: &'static str,
    /// The same in words.
    pub reason: String,
}

/// Decides about everything, newest first. `zone` says when days begin. The newest checkpoint is always kept; where nothing is configured,
/// everything is.
pub fn decide(candidates: &[Candidate], config: &RetentionConfig, zone: &TimeZone) -> Vec<Decision> {
    let mut sorted: Vec<&Candidate> = candidates.iter().collect();
    sorted.sort_by(|a, b| (b.created, &b.id).cmp(&(a.created, &a.id)));
    let (undos, checkpoints): (Vec<_>, Vec<_>) = sorted.iter().copied().partition(|c| c.undo);
    let mut decisions = match rules(config).iter().all(|rule| rule.count == 0) {
        true => keep_all(&checkpoints, "no rule of [retention] is set: nothing is pruned"),
        false => by_rules(&checkpoints, &rules(config), zone),
    };
    decisions.extend(undo(&undos, config));
    decisions.sort_by(|a, b| (b.created, &b.id).cmp(&(a.created, &a.id)));
    decisions
}

/// The part of an instant that is the same for all that a rule takes as one.
type Bucket = fn(&jiff::ZonedDateTime) -> String;

struct Rule {
    name: &'static str,
    count: u32,
    /// `None`: each checkpoint for itself.
    bucket: Option<Bucket>,
}

fn rules(config: &RetentionConfig) -> [Rule; 6] {
    let rule = |name, count, bucket| Rule { name, count, bucket };
    [
        rule("keep_last", config.keep_last, None),
        rule("keep_hourly", config.keep_hourly, Some(|at| at.strftime("%Y-%m-%d %H:00 %:z").to_string())),
        rule("keep_daily", config.keep_daily, Some(|at| at.strftime("%Y-%m-%d").to_string())),
        rule("keep_weekly", config.keep_weekly, Some(|at| at.strftime("week %G-W%V").to_string())),
        rule("keep_monthly", config.keep_monthly, Some(|at| at.strftime("%Y-%m").to_string())),
        rule("keep_yearly", config.keep_yearly, Some(|at| at.strftime("%Y").to_string())),
    ]
}

/// Checkpoints, newest first.
fn by_rules(checkpoints: &[&Candidate], rules: &[Rule], zone: &TimeZone) -> Vec<Decision> {
    let mut seen: Vec<BTreeSet<String>> = vec![BTreeSet::new(); rules.len()];
    let mut decisions = Vec::with_capacity(checkpoints.len());
    for (n, one) in checkpoints.iter().enumerate() {
        let at = one.created.to_zoned_datetime(zone.clone());
        let mut why = (n == 0).then(|| ("newest", "the newest checkpoint is never pruned".to_owned()));
        for (rule, seen) in rules.iter().zip(&mut seen) {
            if seen.len() >= rule.count as usize {
                continue;
            }
            // Every rule counts what it would keep, whichever rule is named.
            let bucket = rule.bucket.map_or_else(|| one.id.clone(), |bucket| bucket(&at));
            if seen.insert(bucket.clone()) && why.is_none() {
                let text = match rule.bucket {
                    None => format!("number {} of the last {}", n + 1, rule.count),
                    Some(_) => format!("the newest of {bucket}, number {} of {}", seen.len(), rule.count),
                };
                why = Some((rule.name, text));
            }
        }
        decisions.push(decision(one, why, "no rule keeps it"));
    }
    decisions
}

/// Undo snapshots, newest first.
fn undo(undos: &[&Candidate], config: &RetentionConfig) -> Vec<Decision> {
    let set = rules(config).iter().any(|rule| rule.count > 0);
    let Some(count) = config.keep_undo.or(set.then_some(DEFAULT_UNDO)) else {
        return keep_all(undos, "no rule of [retention] is set: nothing is pruned");
    };
    let decide = |(n, one): (usize, &&Candidate)| {
        let text = || format!("number {} of the last {count} that restores put aside", n + 1);
        let why = (n < count as usize).then(|| ("keep_undo", text()));
        decision(one, why, &format!("{count} newer ones were put aside by restores"))
    };
    undos.iter().enumerate().map(decide).collect()
}

fn keep_all(candidates: &[&Candidate], why: &str) -> Vec<Decision> {
    candidates.iter().map(|one| decision(one, Some(("not-configured", why.to_owned())), "")).collect()
}

fn decision(one: &Candidate, kept: Option<(&'static str, String)>, otherwise: &str) -> Decision {
    let action = if kept.is_some() { Action::Keep } else { Action::Remove };
    let (rule, reason) = kept.unwrap_or_else(|| ("none", otherwise.to_owned()));
    Decision { id: one.id.clone(), created: one.created, action, rule, reason }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn candidate(id: usize, created: &str, undo: bool) -> Candidate {
        Candidate { id: format!("{id:04}"), created: created.parse().unwrap(), undo }
    }

    /// `keep rule` of each, newest first.
    fn told(decisions: &[Decision]) -> Vec<(String, &'static str)> {
        decisions.iter().map(|d| (d.id.clone(), d.rule)).collect()
    }

    #[test]
    fn the_drawing_holds() {
        let times = ["02T09:00", "03T08:00", "03T20:00", "04T07:00", "04T12:00", "04T18:00"];
        let all: Vec<_> = times
            .iter()
            .enumerate()
            .map(|(n, at)| candidate(n, &format!("2026-03-{at}:00Z"), false))
            .collect();
        let config = RetentionConfig { keep_last: 2, keep_daily: 3, ..RetentionConfig::default() };
        let decisions = decide(&all, &config, &TimeZone::UTC);
        let expected = [
            ("0005", "newest"),
            ("0004", "keep_last"),
            ("0003", "none"),
            ("0002", "keep_daily"),
            ("0001", "none"),
            ("0000", "keep_daily"),
        ];
        assert_eq!(told(&decisions), expected.map(|(id, rule)| (id.to_owned(), rule)));
        assert_eq!(decisions[3].reason, "the newest of 2026-03-03, number 2 of 3");
    }

    #[test]
    fn undo_snapshots_have_a_rule_of_their_own() {
        let mut all: Vec<_> =
            (1..7).map(|n| candidate(n, &format!("2026-03-0{n}T00:00:00Z"), true)).collect();
        all.push(candidate(9, "2026-03-09T00:00:00Z", false));
        let kept = |config: &RetentionConfig| {
            let decisions = decide(&all, config, &TimeZone::UTC);
            assert_eq!(decisions[0].action, Action::Keep);
            decisions[1..].iter().filter(|d| d.action == Action::Keep).count()
        };
        assert_eq!(kept(&RetentionConfig::default()), 6);
        assert_eq!(kept(&RetentionConfig { keep_last: 1, ..Default::default() }), DEFAULT_UNDO as usize);
        assert_eq!(kept(&RetentionConfig { keep_undo: Some(0), ..Default::default() }), 0);
        assert_eq!(kept(&RetentionConfig { keep_undo: Some(5), ..Default::default() }), 5);
    }

    fn configs() -> impl Strategy<Value = RetentionConfig> {
        let counts = (0..5u32, 0..5u32, 0..5u32, 0..5u32, 0..4u32, 0..3u32);
        (counts, proptest::option::of(0..4u32)).prop_map(|(counts, keep_undo)| RetentionConfig {
            keep_last: counts.0,
            keep_hourly: counts.1,
            keep_daily: counts.2,
            keep_weekly: counts.3,
            keep_monthly: counts.4,
            keep_yearly: counts.5,
            keep_undo,
        })
    }

    fn candidates() -> impl Strategy<Value = Vec<Candidate>> {
        // Some minutes apart, or some months.
        proptest::collection::vec((0..40_000_000i64, any::<bool>(), prop::bool::weighted(0.2)), 0..40)
            .prop_map(|times| {
                let made = times.into_iter().enumerate().map(|(n, (second, near, undo))| {
                    let second = 1_700_000_000 + if near { second / 200 } else { second };
                    let created = Timestamp::from_second(second).unwrap();
                    Candidate { id: format!("{n:04}"), created, undo }
                });
                made.collect()
            })
    }

    fn kept(all: &[Candidate], config: &RetentionConfig, zone: &TimeZone) -> BTreeSet<String> {
        let decisions = decide(all, config, zone);
        assert_eq!(decisions.len(), all.len());
        decisions.into_iter().filter(|d| d.action == Action::Keep).map(|d| d.id).collect()
    }

    proptest! {
        #[test]
        fn what_retention_promises(
            all in candidates(), config in configs(), more in configs(), hours in -12..14i8, seed: u64,
        ) {
            let zone = TimeZone::fixed(jiff::tz::offset(hours));
            let keep = kept(&all, &config, &zone);
            let checkpoints: Vec<_> = all.iter().filter(|c| !c.undo).collect();
            // The newest stays; the last so many stay; where no rule is set, all stay.
            let mut newest = checkpoints.clone();
            newest.sort_by_key(|c| std::cmp::Reverse((c.created, c.id.clone())));
            for one in newest.iter().take((config.keep_last as usize).max(1)) {
                prop_assert!(keep.contains(&one.id));
            }
            if rules(&config).iter().all(|r| r.count == 0) {
                prop_assert!(checkpoints.iter().all(|c| keep.contains(&c.id)));
            } else {
                // No more than the rules ask for.
                let most: u32 = rules(&config).iter().map(|r| r.count).sum();
                let stay = checkpoints.iter().filter(|c| keep.contains(&c.id)).count();
                prop_assert!(stay <= most as usize + 1);
                // At least the newest of as many days as are asked for.
                let day = |c: &Candidate| c.created.to_zoned_datetime(zone.clone()).date();
                let days: BTreeSet<_> = checkpoints.iter().map(|c| day(c)).collect();
                let left: BTreeSet<_> =
                    checkpoints.iter().filter(|c| keep.contains(&c.id)).map(|c| day(c)).collect();
                prop_assert!(left.len() >= days.len().min(config.keep_daily as usize));
            }
            // The order of what is told does not matter.
            let mut shuffled = all.clone();
            shuffled.sort_by_key(|c| c.id.bytes().fold(seed, |h, b| (h ^ u64::from(b)).wrapping_mul(0x100_0000_01b3)));
            prop_assert_eq!(&kept(&shuffled, &config, &zone), &keep);
            // Asked again of what is left, nothing more goes.
            let left: Vec<_> = all.iter().filter(|c| keep.contains(&c.id)).cloned().collect();
            prop_assert_eq!(&kept(&left, &config, &zone), &keep);
            // A rule that keeps more keeps what it kept, as long as one was set.
            if rules(&config).iter().any(|r| r.count > 0) {
                let wider = RetentionConfig {
                    keep_last: config.keep_last + more.keep_last,
                    keep_hourly: config.keep_hourly + more.keep_hourly,
                    keep_daily: config.keep_daily + more.keep_daily,
                    keep_weekly: config.keep_weekly + more.keep_weekly,
                    keep_monthly: config.keep_monthly + more.keep_monthly,
                    keep_yearly: config.keep_yearly + more.keep_yearly,
                    keep_undo: config.keep_undo,
                };
                prop_assert!(keep.is_subset(&kept(&all, &wider, &zone)));
            }
        }
    }
}
