//! org.freedesktop.PolicyKit1, answering as the test says and remembering what it was asked.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex};

use zbus::{Connection, OwnedVariant};

#[derive(Debug, Clone, PartialEq)]
pub struct Question {
    pub kind: String,
    pub name: String,
    pub action: String,
    pub group: String,
    pub interactive: bool,
}

#[derive(Default)]
pub struct Rules {
    pub denied: Mutex<BTreeSet<String>>,
    pub asked: Mutex<Vec<Question>>,
}

impl Rules {
    /// Denies all but looking, like the shipped policy does to a user without rights.
    pub fn deny_all(&self) {
        let all = ckpt_dbus::names::actions::ALL.into_iter().filter(|a| *a != "org.ckpt.inspect");
        *self.denied.lock().unwrap() = all.map(str::to_owned).collect();
    }

    pub fn last(&self) -> Question {
        self.asked.lock().unwrap().last().cloned().expect("polkit was asked")
    }
}

struct Authority(Arc<Rules>);

#[zbus::interface(name = "org.freedesktop.PolicyKit1.Authority")]
impl Authority {
    fn check_authorization(
        &self,
        subject: (String, HashMap<String, OwnedVariant>),
        action: String,
        details: HashMap<String, String>,
        flags: u32,
        _cancellation: String,
    ) -> ((bool, bool, HashMap<String, String>),) {
        let name = match subject.1.get("name").map(|v| &**v) {
            Some(zbus::Variant::Str(name)) => name.to_string(),
            _ => String::new(),
        };
        let allowed = !self.0.denied.lock().unwrap().contains(&action);
        let group = details.get("group").cloned().unwrap_or_default();
        let question = Question { kind: subject.0, name, action, group, interactive: flags & 1 != 0 };
        self.0.asked.lock().unwrap().push(question);
        ((allowed, false, HashMap::new()),)
    }
}

pub async fn serve(bus: &super::Bus, rules: Arc<Rules>) -> Connection {
    let connection = bus.connect().await;
    let path = "/org/freedesktop/PolicyKit1/Authority";
    connection.object_server().at(path, Authority(rules)).await.unwrap();
    connection.request_name("org.freedesktop.PolicyKit1").await.unwrap();
    connection
}
