//! The scale subresource of an EventConsumer: what `kubectl scale` and a HorizontalPodAutoscaler use.

use crate::support::Objects;
use serde_json::{Value, json};

const OBJECTS: &str = "
apiVersion: jetwright.dev/v1alpha1
kind: EventConsumer
metadata: {name: with-pods}
spec: {streamRef: {name: orders}, workload: {template: {spec: {containers: [{name: app, image: app}]}}}}
---
apiVersion: jetwright.dev/v1alpha1
kind: EventConsumer
metadata: {name: without-pods}
spec: {streamRef: {name: orders}}
";

#[tokio::test]
async fn kubectl_scale_sets_the_pods_of_a_workload() {
    let objects = Objects::applied(OBJECTS).await;
    let selector = "jetwright.dev/workload=with-pods";
    let status = json!({"status": {"replicas": 1, "selector": selector}});
    objects.write_status("ec/with-pods", &status.to_string());
    let scale = || -> Value {
        let get = ["get", "ec/with-pods", "--subresource=scale", "-o", "json"];
        serde_json::from_str(&objects.kubectl(&get).unwrap()).unwrap()
    };
    let before = scale();
    assert_eq!(before["kind"], "Scale");
    assert_eq!(before["spec"], json!({"replicas": 1}));
    assert_eq!(before["status"], json!({"replicas": 1, "selector": selector}));

    objects.kubectl(&["scale", "ec/with-pods", "--replicas=5"]).unwrap();
    assert_eq!(scale()["spec"], json!({"replicas": 5}));
    let replicas = ["get", "ec/with-pods", "-o", "jsonpath={.spec.workload.replicas}"];
    assert_eq!(objects.kubectl(&replicas).unwrap(), "5");
    let refused = objects.kubectl(&["scale", "ec/with-pods", "--replicas=1001"]).unwrap_err();
    assert!(refused.contains("spec.workload.replicas"), "{refused}");
}

#[tokio::test]
async fn what_has_no_pods_cannot_be_scaled() {
    let objects = Objects::applied(OBJECTS).await;
    let refused = objects.kubectl(&["scale", "ec/without-pods", "--replicas=2"]).unwrap_err();
    assert!(refused.contains("spec.workload.template"), "{refused}");
}

/// An EventConsumer `name` with pods that are scaled so, and whose container has this image.
fn scaled(name: &str, replicas: i32, autoscaling: &str, image: &str) -> String {
    format!(
        "apiVersion: jetwright.dev/v1alpha1\nkind: EventConsumer\nmetadata: {{name: {name}}}\nspec: {{streamRef: {{name: orders}}, workload: \
         {{replicas: {replicas}, autoscaling: {autoscaling}, template: {{spec: {{containers: [{{name: app, image: '{image}'}}]}}}}}}}}\n"
    )
}

#[tokio::test]
async fn with_active_autoscaling_nobody_else_scales_and_it_says_so() {
    let (active, observe) = ("{maxReplicas: 5}", "{maxReplicas: 5, mode: Observe}");
    let manifests = [scaled("active", 1, active, "a"), scaled("observed", 1, observe, "a")];
    let objects = Objects::applied(&manifests.join("---\n")).await;
    let words = "autoscaling decides how many pods there are";
    let refused = objects.kubectl(&["scale", "ec/active", "--replicas=3"]).unwrap_err();
    assert!(refused.contains(words), "{refused}");
    let patch = |spec: &Value| {
        let spec = json!({"spec": {"workload": spec}}).to_string();
        objects.kubectl(&["patch", "ec/active", "--type=merge", "-p", &spec])
    };
    let refused = patch(&json!({"replicas": 3})).unwrap_err();
    assert!(refused.contains(words), "{refused}");
    // What else of the workload is changed with it, is a declaration; and so are other bounds, and the other mode.
    let image = json!({"spec": {"containers": [{"name": "app", "image": "b"}]}});
    patch(&json!({"replicas": 3, "template": image})).unwrap();
    patch(&json!({"replicas": 4, "autoscaling": {"maxReplicas": 6}})).unwrap();
    patch(&json!({"replicas": 2, "autoscaling": {"mode": "Observe"}})).unwrap();
    for object in ["ec/active", "ec/observed"] {
        objects.kubectl(&["scale", object, "--replicas=3"]).unwrap();
    }
    patch(&json!({"replicas": 4, "autoscaling": {"mode": "Active"}})).unwrap();
    objects.kubectl(&["scale", "ec/active", "--replicas=3"]).unwrap_err();
    patch(&json!({"replicas": 3, "autoscaling": null})).unwrap();
    objects.kubectl(&["scale", "ec/active", "--replicas=4"]).unwrap();
}
