//! `enable SLICE|UNIT… [--name N] [--subvolume PATH]…`

use ckpt_dbus::names;

use crate::bus::none;
use crate::context::Context;
use crate::failure::Failure;
use crate::output::{clean, print_json, write_out};

/// The group to register.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// A slice, or the services; one name alone may also be that of a file in /etc/ckpt/groups.d
    #[arg(required = true, value_name = "SLICE|UNIT")]
    members: Vec<String>,
    /// Name of the group; needed for several services
    #[arg(long, short, value_name = "NAME")]
    name: Option<String>,
    /// A btrfs subvolume that belongs to the group, once for each
    #[arg(long = "subvolume", short = 's', value_name = "PATH")]
    subvolumes: Vec<String>,
}

/// What `Enable` is called with.
#[derive(Debug, PartialEq, Eq)]
struct Request {
    name: String,
    slice: Option<String>,
    units: Vec<String>,
}

pub async fn run(args: Args, context: &Context) -> Result<(), Failure> {
    let request = request(&args.members, args.name.as_deref())?;
    let mut config = none();
    if let Some(slice) = &request.slice {
        config.insert("slice", slice.as_str().into());
    }
    if !request.units.is_empty() {
        config.insert("units", request.units.clone().into());
    }
    let subvolumes = args.subvolumes.iter().map(|p| absolute(p, context)).collect::<Result<Vec<_>, _>>()?;
    if !subvolumes.is_empty() {
        config.insert("subvolumes", subvolumes.into());
    }
    let bus = context.bus().await?;
    let path = bus.manager.enable(&request.name, &config).await?;
    let name = names::unescape(path.as_str().rsplit('/').next().unwrap_or("")).unwrap_or(request.name);
    let row = bus.group(&name).await?;
    if context.json {
        return print_json(&crate::view::Group::from(row));
    }
    let members = if row.slice.is_empty() { row.units.join(", ") } else { row.slice.clone() };
    let mut text = format!("Enabled group {}: {}", clean(&name), clean(&members));
    match row.subvolumes.as_slice() {
        [] => text.push_str("; no subvolumes, so its files are not checkpointed\n"),
        paths => text.push_str(&format!("; with {}\n", clean(&paths.join(", ")))),
    }
    for member in row.members.iter().filter(|m| m.main_pid != 0 && !m.preloaded) {
        text.push_str(&format!(
            "{} runs without the preload library until its next start; it can be checkpointed all the same\n",
            clean(&member.unit)
        ));
    }
    write_out(&text)
}

fn request(members: &[String], name: Option<&str>) -> Result<Request, Failure> {
    let slices = members.iter().filter(|m| m.ends_with(".slice")).count();
    match (members, slices, name) {
        // The daemon knows what a lone name means: the file of a group, a service, a slice.
        ([one], _, None) => Ok(Request { name: one.clone(), slice: None, units: vec![] }),
        ([slice], 1, Some(name)) => {
            Ok(Request { name: name.into(), slice: Some(slice.clone()), units: vec![] })
        }
        (_, 0, Some(name)) => Ok(Request {
            name: name.into(),
            slice: None,
            units: members.iter().map(|m| service(m)).collect(),
        }),
        (_, 0, None) => Err(Failure::usage("a group of several services needs a name: --name NAME".into())),
        _ => Err(Failure::usage("a group is one slice or a list of services, not both".into())),
    }
}

/// A unit's name in full, as systemctl takes it short.
fn service(name: &str) -> String {
    if name.ends_with(".service") { name.to_string() } else { format!("{name}.service") }
}

/// On this host a path may be relative to where we are; another host has no such place.
fn absolute(path: &str, context: &Context) -> Result<String, Failure> {
    if context.host.is_some() && !path.starts_with('/') {
        return Err(Failure::usage(format!("--subvolume {path}: with -H the path must be absolute")));
    }
    let absolute =
        std::path::absolute(path).map_err(|e| Failure::usage(format!("--subvolume {path}: {e}")))?;
    let text = absolute.to_str().map(|t| t.trim_end_matches('/')).filter(|t| !t.is_empty());
    text.map(str::to_owned).ok_or_else(|| Failure::usage(format!("--subvolume {path}: not a path")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(members: &[&str], name: Option<&str>) -> Result<Request, u8> {
        let members: Vec<_> = members.iter().map(|m| m.to_string()).collect();
        request(&members, name).map_err(|f| f.status)
    }

    #[test]
    fn a_group_is_a_slice_or_services() {
        let web = of(&["web.slice"], None).unwrap();
        assert_eq!((web.name.as_str(), web.slice), ("web.slice", None));
        assert_eq!(of(&["web.slice"], Some("shop")).unwrap().slice.as_deref(), Some("web.slice"));
        assert_eq!(of(&["a", "b.service"], Some("x")).unwrap().units, ["a.service", "b.service"]);
        assert_eq!(of(&["a", "b"], None), Err(2));
        assert_eq!(of(&["a.service", "b.slice"], Some("x")), Err(2));
    }
}
