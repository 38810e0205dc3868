//! A process serves a model by its name.

use anyhow::{Context, Result};
use integration_tests::client::{complete, get};
use integration_tests::fp8_folders::fp8_models;
use integration_tests::hub::{FakeHub, HubHome};
use serde_json::json;

use super::{files_of, sharded};

#[test]
fn a_model_is_served_by_name() -> Result<()> {
    let (model, files) = sharded()?;
    let hub = FakeHub::start()?;
    hub.put("some-org/Tiny-1B", files.clone());
    let home = HubHome::new(&hub)?;
    let arguments =
        ["--model", "some-org/Tiny-1B", "--set", "frontend.port=0", "--set", "engine.kv_bytes=4MiB"];
    let process = home.start(&arguments)?;
    let frontend = process.wait_healthy("frontend.port")?;
    let answer = complete(&frontend, &json!(model.prompt), model.ids.len() as u32)?;
    assert_eq!(answer.ids, model.ids);
    let (_, models) = get(&frontend, "/v1/models")?;
    assert_eq!(models["data"][0]["id"], "some-org/Tiny-1B");
    let requests = hub.requests();
    for unused in ["README", "pytorch_model", "original"] {
        assert!(!requests.iter().any(|request| request.path.contains(unused)), "{unused}: {requests:?}");
    }
    assert_eq!(home.check("some-org/Tiny-1B", &files), files.len() - 3);
    drop(process);

    // The second start asks whether there is a newer commit, and downloads nothing.
    let process = home.start(&arguments)?;
    process.wait_healthy("frontend.port")?;
    assert_eq!(hub.requests().len(), 1);
    drop(process);
    let home = home.with("HF_HUB_OFFLINE", "1");
    let process = home.start(&arguments)?;
    process.wait_healthy("frontend.port")?;
    assert_eq!(hub.requests().len(), 0);
    Ok(())
}

/// All files of a model in FP8 are needed, as those of any folder.
#[test]
fn a_model_in_fp8_is_served_by_name() -> Result<()> {
    let model = fp8_models()?.into_iter().find(|model| model.small.name == "fp8-block-sharded");
    let model = model.context("no such model")?;
    let files = files_of(&model.write("hub-fp8")?)?;
    let hub = FakeHub::start()?;
    hub.put("some-org/Tiny-FP8", files.clone());
    let home = HubHome::new(&hub)?;
    let arguments =
        ["--model", "some-org/Tiny-FP8", "--set", "frontend.port=0", "--set", "engine.kv_bytes=4MiB"];
    let process = home.start(&arguments)?;
    let frontend = process.wait_healthy("frontend.port")?;
    let answer = complete(&frontend, &json!(model.small.prompt), model.small.ids.len() as u32)?;
    assert_eq!(answer.ids, model.small.ids);
    assert_eq!(home.check("some-org/Tiny-FP8", &files), files.len());
    Ok(())
}
