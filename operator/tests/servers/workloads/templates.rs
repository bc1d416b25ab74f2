//! What the user wrote in a template, and what the operator adds to it.

use jetwright_crds::EventConsumer;
use jetwright_testing::await_until;
use k8s_openapi::api::{
    apps::v1::Deployment,
    core::v1::{Container, Service},
    policy::v1::PodDisruptionBudget,
};
use kube::{
    Api, ResourceExt,
    api::{Patch, PatchParams},
};
use serde_json::{Value, json};

use super::{await_deployment, await_object, create, edit, with_orders};
use crate::world::{SOON, World};

/// A consumer `fulfilment` whose only container has these fields too.
fn spec_of(container: &str) -> String {
    format!(
        "{{streamRef: {{name: orders}}, deadLetter: {{policy: Drop}}, workload: {{template: {{spec: {{containers: [
           {{name: app, image: 'x:1', {container}}}]}}}}}}}}"
    )
}

fn program(deployment: &Deployment) -> Container {
    let pod = deployment.spec.clone().unwrap().template.spec.unwrap();
    pod.containers.into_iter().next().unwrap()
}

fn ports(deployment: &Deployment) -> Vec<(Option<String>, i32, Option<String>)> {
    let ports = program(deployment).ports.unwrap();
    ports.into_iter().map(|port| (port.name, port.container_port, port.protocol)).collect()
}

fn port(name: &str, number: i32, protocol: &str) -> (Option<String>, i32, Option<String>) {
    (Some(name.to_owned()), number, Some(protocol.to_owned()))
}

/// As charts print what has no value.
const BARE: &str = "
    streamRef: {name: orders}
    deadLetter: {policy: Drop}
    workload:
      replicas: 0
      template:
        metadata:
          labels:
          annotations:
        spec:
          volumes:
          initContainers:
          securityContext:
          containers:
          - name: app
            image: 'x:1'
            env:
            ports:
            volumeMounts:
            securityContext:
            livenessProbe:
";

#[tokio::test]
async fn a_field_without_a_value_is_as_if_it_were_absent() {
    let world = with_orders().await;
    let whole = |deployment: &Deployment| {
        let container = program(deployment);
        let variables: Vec<_> =
            container.env.iter().flatten().map(|variable| variable.name.as_str()).collect();
        assert!(variables.starts_with(&["JETWRIGHT_BINDINGS", "JETWRIGHT_ADMIN_ADDRESS"]), "{variables:?}");
        assert_eq!(ports(deployment), [port("admin", 9090, "TCP")]);
        assert_eq!(container.volume_mounts.unwrap()[0].mount_path, "/etc/jetwright");
        assert!(container.liveness_probe.is_some() && container.security_context.is_some());
        let pod = deployment.spec.as_ref().unwrap().template.spec.as_ref().unwrap();
        assert_eq!(pod.volumes.as_ref().unwrap()[0].name, "jetwright");
        assert_eq!(pod.security_context.as_ref().unwrap().run_as_non_root, Some(true));
    };
    world.consumer("fulfilment", BARE).await;
    whole(&await_deployment(&world, "the deployment of what was applied", |_| true).await);
    world.delete::<EventConsumer>("fulfilment").await;
    world.await_gone::<Deployment>("fulfilment").await;
    world.await_gone::<EventConsumer>("fulfilment").await;
    let spec: Value = serde_saphyr::from_str(BARE).unwrap();
    create(
        &world,
        json!({
            "apiVersion": "jetwright.dev/v1alpha1", "kind": "EventConsumer", "metadata": {"name": "fulfilment"}, "spec": spec,
        }),
    )
    .await;
    whole(&await_deployment(&world, "the deployment of what was created", |_| true).await);
}

#[tokio::test]
async fn the_admin_port_stands_beside_whatever_ports_the_template_has() {
    let world = with_orders().await;
    world.consumer("fulfilment", &spec_of("ports: [{name: admin, containerPort: 8081}]")).await;
    let beside = await_deployment(&world, "the deployment", |_| true).await;
    assert_eq!(ports(&beside), [port("admin", 8081, "TCP"), port("jetwright-admin", 9090, "TCP")]);
    // A port is its number and its protocol.
    let both = "ports: [{name: dns, containerPort: 9090, protocol: UDP}, {name: a, containerPort: 53, protocol: UDP},
        {name: b, containerPort: 53, protocol: TCP}]";
    world.consumer("fulfilment", &spec_of(both)).await;
    await_deployment(&world, "every port", |deployment| {
        let expected = [
            port("dns", 9090, "UDP"),
            port("a", 53, "UDP"),
            port("b", 53, "TCP"),
            port("admin", 9090, "TCP"),
        ];
        let found = ports(deployment);
        found.len() == expected.len() && expected.iter().all(|port| found.contains(port))
    })
    .await;
}

#[tokio::test]
async fn a_service_has_a_port_for_each_number_and_protocol() {
    let world = with_orders().await;
    let ports = "[{name: tcp, port: 53}, {name: udp, port: 53, protocol: UDP}]";
    let spec = spec_of("").replace("workload: {", &format!("workload: {{service: {{ports: {ports}}}, "));
    world.consumer("fulfilment", &spec).await;
    await_object::<Service>(&world, "fulfilment", |found| {
        let ports = found["spec"]["ports"].as_array().unwrap();
        let found: Vec<_> = ports.iter().map(|port| (&port["port"], &port["protocol"])).collect();
        found == [(&json!(53), &json!("TCP")), (&json!(53), &json!("UDP"))]
    })
    .await;
}

#[tokio::test]
async fn an_admin_address_of_the_template_moves_port_and_probes_and_is_a_plain_value() {
    let world = with_orders().await;
    let set = |source: &str| spec_of(&format!("env: [{{name: JETWRIGHT_ADMIN_ADDRESS, {source}}}]"));
    world.consumer("fulfilment", &set("value: '0.0.0.0:9191'")).await;
    let moved = await_deployment(&world, "the deployment", |_| true).await;
    assert_eq!(ports(&moved), [port("admin", 9191, "TCP")]);
    let probed = program(&moved).readiness_probe.unwrap().http_get.unwrap().port;
    assert_eq!(serde_json::to_value(probed).unwrap(), json!(9191));
    for wrong in ["valueFrom: {configMapKeyRef: {name: a, key: b}}", "value: '9191'"] {
        world.consumer("fulfilment", &set(wrong)).await;
        let message =
            world.await_condition::<EventConsumer>("fulfilment", "WorkloadReady", "False", "Invalid").await;
        assert!(message.contains("JETWRIGHT_ADMIN_ADDRESS must"), "{message}");
    }
}

/// Names of the managers that own fields of an object beside the operator's own apply, the user's edit aside.
async fn other_managers(world: &World, name: &str) -> Vec<String> {
    let api: Api<Deployment> = world.namespace.api();
    let entries = api.get(name).await.unwrap().managed_fields().to_vec();
    let others = entries.into_iter().filter(|entry| entry.operation.as_deref() != Some("Apply"));
    others.filter_map(|entry| entry.manager).filter(|manager| manager.starts_with("jetwright")).collect()
}

/// `kubectl set env` and the like replace one way to give a value by another, which an apply would only add to.
#[tokio::test]
async fn what_somebody_gave_another_source_is_put_back() {
    let world = with_orders().await;
    let secret = "env: [{name: PASSWORD, valueFrom: {secretKeyRef: {name: s, key: password}}}]";
    world.consumer("fulfilment", &spec_of(secret)).await;
    await_deployment(&world, "the deployment", |_| true).await;
    let api: Api<Deployment> = world.namespace.api();
    // Again and again, as for plain values.
    for password in ["one", "two"] {
        let env = json!([{"name": "PASSWORD", "value": password, "valueFrom": null}]);
        let probe = json!({"httpGet": null, "exec": {"command": ["true"]}});
        let container = json!({"name": "app", "env": env, "livenessProbe": probe});
        let change = json!({"spec": {"template": {"spec": {"containers": [container]}}}});
        api.patch("fulfilment", &PatchParams::default(), &Patch::Strategic(change)).await.unwrap();
        let restored = await_deployment(&world, "the variable and the probe as declared", |deployment| {
            let container = program(deployment);
            let variable =
                container.env.into_iter().flatten().find(|variable| variable.name == "PASSWORD").unwrap();
            let probe = container.liveness_probe.unwrap();
            variable.value_from.is_some()
                && variable.value.is_none()
                && probe.http_get.is_some()
                && probe.exec.is_none()
        })
        .await;
        assert_eq!(program(&restored).image.as_deref(), Some("x:1"));
    }
    world.await_condition::<EventConsumer>("fulfilment", "WorkloadReady", "False", "RollingOut").await;
    // What is taken out of the template later goes: nobody but the apply owns it.
    await_until("no other owner", SOON, || async {
        let others = other_managers(&world, "fulfilment").await;
        if others.is_empty() { Ok(()) } else { Err(format!("{others:?}")) }
    })
    .await;
    world.consumer("fulfilment", &spec_of("args: [a]")).await;
    await_deployment(&world, "no variable", |deployment| {
        program(deployment).env.iter().flatten().all(|variable| variable.name != "PASSWORD")
    })
    .await;
}

#[tokio::test]
async fn what_excludes_a_declared_field_of_the_service_or_the_budget_goes() {
    let world = with_orders().await;
    let spec = spec_of("").replace("workload: {", "workload: {service: {ports: [{name: http, port: 80}]}, ");
    world.consumer("fulfilment", &spec).await;
    await_deployment(&world, "the deployment", |_| true).await;
    edit::<PodDisruptionBudget>(
        &world,
        "fulfilment",
        json!({"spec": {"maxUnavailable": null, "minAvailable": 1}}),
    )
    .await;
    await_object::<PodDisruptionBudget>(&world, "fulfilment", |found| {
        found["spec"]["maxUnavailable"] == 1 && found["spec"]["minAvailable"].is_null()
    })
    .await;
    let services: Api<Service> = world.namespace.api();
    let address = services.get("fulfilment").await.unwrap().spec.unwrap().cluster_ip;
    // Two ports cannot have one name.
    edit::<Service>(&world, "fulfilment", json!({"spec": {"ports": [{"name": "http", "port": 81}]}})).await;
    await_until("the port as declared", SOON, || async {
        let found = services.get("fulfilment").await.map_err(|error| error.to_string())?.spec.unwrap();
        let ports: Vec<_> = found.ports.iter().flatten().map(|port| port.port).collect();
        if ports == [80] && found.cluster_ip == address { Ok(()) } else { Err(format!("{found:?}")) }
    })
    .await;
}
