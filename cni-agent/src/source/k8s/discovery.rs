//! What kinds a server has, and which fields of ours it keeps. Everybody who has credentials may ask for both.

use std::time::Duration;

use http::Request;
use kube::{Client, CustomResourceExt, Resource};
use serde_json::Value;
use tokio::time::sleep;

use super::{
    crd::{MillraceConfig, PLURAL},
    desk::Resource as Place,
    pace,
    watch::Office,
};

/// Whether the server has no such kind, in its own words: a front end that knows nothing answers every request as a server
/// answers one for a kind that it has not.
pub(super) async fn lacks<K: Resource<DynamicType = ()>>(client: &Client) -> bool {
    let version = K::api_version(&());
    let Ok(groups) = client.list_api_groups().await else {
        return false;
    };
    let mut versions = groups.groups.iter().flat_map(|group| &group.versions);
    if !versions.any(|served| served.group_version == version) {
        return !groups.groups.is_empty();
    }
    let kinds = client.list_api_group_resources(&version).await;
    kinds.is_ok_and(|kinds| kinds.resources.iter().all(|kind| kind.name != K::plural(&())))
}

const DEFINITIONS: Place = "definitions";
/// Between looks: definitions change with a release.
const LOOK: Duration = Duration::from_secs(300);
/// While somebody is about to repair them.
const SOON: Duration = Duration::from_secs(30);

/// Says which of our fields the server drops, because its definitions are older than this agent, until nobody listens.
pub(super) async fn compare(office: Office) {
    let client = office.servers.client(|| ());
    loop {
        let pause = match dropped(&client).await {
            Some(fields) if !fields.is_empty() => {
                office.desk.fault(DEFINITIONS, complaint(&fields));
                SOON
            }
            Some(_) => {
                office.desk.fine(DEFINITIONS);
                LOOK
            }
            // Whether the server answers and has the kind at all, its watch says.
            None => SOON,
        };
        sleep(pace::around(pause)).await;
    }
}

fn complaint(fields: &[String]) -> String {
    format!(
        "the API server's definition of {PLURAL} is older than this agent and drops {}, so that they have no effect; apply the output of `millrace crds`",
        fields.join(", ")
    )
}

/// `None` if the server does not say.
async fn dropped(client: &Client) -> Option<Vec<String>> {
    let version = MillraceConfig::api_version(&());
    let request = Request::get(format!("/openapi/v3/apis/{version}"));
    let document: Value = client.request(request.body(Vec::new()).ok()?).await.ok()?;
    let kind = MillraceConfig::kind(&());
    let schemas = document.pointer("/components/schemas")?.as_object()?;
    let theirs = schemas.values().find(|schema| {
        let kinds = schema["x-kubernetes-group-version-kind"].as_array();
        kinds.is_some_and(|kinds| kinds.iter().any(|one| one["kind"] == kind.as_ref()))
    })?;
    let ours = serde_json::to_value(MillraceConfig::crd()).ok()?;
    let ours = ours.pointer("/spec/versions/0/schema/openAPIV3Schema")?;
    let mut fields = Vec::new();
    missing(ours, theirs, "", &mut fields);
    Some(fields)
}

/// The outermost fields that only the first schema has.
fn missing(ours: &Value, theirs: &Value, at: &str, found: &mut Vec<String>) {
    for (name, field) in ours["properties"].as_object().into_iter().flatten() {
        let path = if at.is_empty() {
            name.clone()
        } else {
            format!("{at}.{name}")
        };
        match theirs["properties"].get(name) {
            Some(known) => missing(field, known, &path, found),
            None => found.push(path),
        }
    }
    if ours["items"].is_object() {
        missing(&ours["items"], &theirs["items"], &format!("{at}[]"), found);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn fields_that_a_server_would_drop_are_found_at_every_depth() {
        let ours = json!({ "properties": { "spec": { "properties": {
            "mtu": {}, "nodes": { "items": { "properties": { "mtu": {}, "routing": {} } } },
            "services": { "properties": { "cidrs": {} } },
        } } } });
        let theirs = json!({ "properties": { "kind": {}, "spec": { "properties": {
            "mtu": {}, "nodes": { "items": { "properties": { "routing": {} } } }, "other": {},
        } } } });
        let mut found = Vec::new();
        missing(&ours, &theirs, "", &mut found);
        assert_eq!(found, ["spec.nodes[].mtu", "spec.services"]);
        assert!(complaint(&found).contains("drops spec.nodes[].mtu, spec.services,"));
        found.clear();
        missing(&ours, &ours, "", &mut found);
        assert!(found.is_empty());
    }
}
