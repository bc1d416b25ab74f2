//! In: a pod and its containers. Out: the status that a kubelet writes. Pure.

use k8s_openapi::{api::core::v1::Pod, jiff::Timestamp};
use serde_json::{Value, json};

use super::{container::Container, pod::Place};

/// Whether all containers have ended for good.
pub fn has_ended(pod: &Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    matches!(phase, Some("Succeeded" | "Failed"))
}

/// The ports that its containers listen on.
pub fn ports(pod: &Pod) -> impl Iterator<Item = u16> {
    let containers = pod.spec.iter().flat_map(|spec| &spec.containers);
    let ports = containers.flat_map(|container| container.ports.iter().flatten());
    ports.filter_map(|port| port.container_port.try_into().ok())
}

/// A pod's status; `before` is the one that was written last, whose times hold for what did not change.
pub fn of(place: &Place, containers: &[Container], before: Option<&Value>) -> Value {
    let ready = containers.iter().all(Container::is_ready);
    let unready: Vec<_> = containers.iter().filter(|one| !one.is_ready()).map(Container::name).collect();
    let names = unready.join(" ");
    let condition = |type_: &str, holds: bool| {
        let status = if holds { "True" } else { "False" };
        let known = before.and_then(|before| {
            let conditions = before["conditions"].as_array()?;
            conditions.iter().find(|known| known["type"] == type_ && known["status"] == status)
        });
        let now = || json!(format!("{:.0}", Timestamp::now()));
        let since = known.map_or_else(now, |known| known["lastTransitionTime"].clone());
        let mut condition = json!({"type": type_, "status": status, "lastTransitionTime": since});
        if !holds {
            condition["reason"] = json!("ContainersNotReady");
            condition["message"] = json!(format!("containers with unready status: [{names}]"));
        }
        condition
    };
    let address = place.address.to_string();
    json!({
        "phase": phase(containers),
        "hostIP": "127.0.0.1", "hostIPs": [{"ip": "127.0.0.1"}],
        "podIP": address, "podIPs": [{"ip": address}],
        "startTime": format!("{:.0}", place.started),
        "conditions": [
            condition("Initialized", true), condition("ContainersReady", ready), condition("Ready", ready),
        ],
        "containerStatuses": containers.iter().map(Container::status).collect::<Vec<_>>(),
    })
}

fn phase(containers: &[Container]) -> &'static str {
    let codes: Option<Vec<_>> = containers.iter().map(Container::has_ended).collect();
    match codes {
        Some(codes) if codes.iter().all(|code| *code == 0) => "Succeeded",
        Some(_) => "Failed",
        None if containers.iter().any(|one| one.runs() || one.status()["restartCount"] != 0) => "Running",
        None => "Pending",
    }
}
