//! `make demo-cluster`, on the cluster that is there.

use std::{
    ffi::OsStr,
    process::{Command, Output},
};

use jetwright_e2e::cluster::{Cluster, checkout};

/// Runs the demo's script as a shell would: with what Cargo sets for tests, the crate ring would be built anew, and all that stands on it.
fn demo(command: &str) -> Output {
    let cargos: Vec<_> = std::env::vars_os().map(|(name, _)| name).filter(|name| is_cargos(name)).collect();
    let mut script = Command::new(checkout("e2e/demo/on-kind"));
    for name in cargos {
        script.env_remove(name);
    }
    script.arg(command).output().unwrap()
}

fn is_cargos(name: &OsStr) -> bool {
    name.to_string_lossy().starts_with("CARGO") && name != "CARGO_HOME" && name != "CARGO_TARGET_DIR"
}

#[tokio::test]
async fn the_demo_run_again_tells_the_path_of_two_orders_and_prints_lines_that_work() {
    let cluster = Cluster::connect().await;
    let ended = demo("up");
    let (account, progress) =
        (String::from_utf8(ended.stdout).unwrap(), String::from_utf8_lossy(&ended.stderr).into_owned());
    assert!(ended.status.success(), "{account}{progress}");
    for told in [
        r"Her order of two mugs is confirmed",
        r"Her order of a raffle ticket is rejected",
        "by payment_authorization",
        "handled by user-directory",
        "handled by order-users",
        "handled by order-fulfilment",
        ".authorized",
        ".declined",
        ".order_rejected",
    ] {
        assert!(account.contains(told), "nothing of {told:?} in\n{account}");
    }
    // Each stored or handled event is a line with its stream, sequence and pod.
    let confirmed =
        account.lines().find(|line| line.starts_with("orders ") && line.contains(".confirmed")).unwrap();
    let columns: Vec<_> = confirmed.split_whitespace().collect();
    assert!(columns[1].parse::<u64>().is_ok(), "{confirmed}");
    cluster.kubectl(&format!("get pod --namespace shop {}", columns[4])).await;

    let lines: Vec<_> = account.lines().filter_map(|line| line.strip_prefix("  kubectl ")).collect();
    assert!(lines.len() >= 6, "{account}");
    for line in lines {
        let ran = Command::new("sh").args(["-c", &format!("kubectl {line}")]).output().unwrap();
        assert!(ran.status.success(), "kubectl {line}: {}", String::from_utf8_lossy(&ran.stderr));
    }
    // It takes back what the lines changed, as a user does who runs it again.
    let ended = demo("install");
    assert!(ended.status.success(), "{}", String::from_utf8_lossy(&ended.stderr));
    let replicas = cluster
        .kubectl("get eventconsumer order-fulfilment --namespace shop -o jsonpath={.spec.workload.replicas}");
    assert_eq!(replicas.await, "2");
    cluster.await_all_ready("shop", jetwright_e2e::cluster::LATER).await;
}
