//! Child processes, and what is left of them.

use jetwright_testing::Process;
use std::time::Duration;

#[tokio::test]
async fn a_process_is_its_own_and_gone_when_dropped() {
    let sleeper = Process::builder("sh").args(["-c", "echo started; exec sleep 1000"]).start();
    assert_eq!(sleeper.await_log("start", Duration::from_secs(5)).await, "started");
    assert!(sleeper.memory_bytes() > 100_000);
    let (pid, folder) = (sleeper.pid(), sleeper.folder().to_owned());
    drop(sleeper);
    assert!(!std::path::Path::new(&format!("/proc/{pid}")).exists());
    assert!(!folder.exists());
}
