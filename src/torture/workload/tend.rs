//! One who looks after the queue: dead letters go back or are forgotten, some requests are cancelled, and now and then
//! all of it is exported.

use std::{sync::Arc, time::Duration};

use super::{Child, Over};
use crate::{
    error::Result,
    queue::{Administration, List, transfer::DumpFrom},
    request::{RequestId, State},
    torture::event::{Answer, Verb},
};

/// Looks after the queue until it is over. Nobody else touches dead letters.
pub(super) async fn tend(child: Arc<Child>, mut random: fastrand::Rng) {
    while let Ok(()) = one(&child, &mut random).await {
        tokio::time::sleep(Duration::from_millis(random.u64(1..30))).await;
    }
}

async fn one(child: &Child, random: &mut fastrand::Rng) -> Result<(), Over> {
    child.go_on()?;
    match random.u8(..20) {
        0 => export(child).await.map_err(|error| Child::failed(&error)),
        1..9 => redrive(child, random).await,
        9..14 => purge(child).await,
        _ => cancel(child, random).await,
    }
}

/// Reads all that is there, while it changes.
async fn export(child: &Child) -> Result<()> {
    let Some(transfer) = child.queue.transfer() else {
        return Ok(());
    };
    let now = child.queue.now();
    let mut from = Some(DumpFrom::Start);
    while let Some(at) = from {
        from = transfer.dump(now, at).await?.next;
    }
    Ok(())
}

async fn cancel(child: &Child, random: &mut fastrand::Rng) -> Result<(), Over> {
    let Some(admin) = child.queue.admin() else {
        return Ok(());
    };
    let ids = child.some_known(random);
    let call = child.begin(Verb::Cancel(ids.clone()));
    let marks = admin.cancel(call.now, &ids).await;
    let marks = marks.map(|marks| {
        let marks = marks.into_iter().map(Into::into).collect();
        (Answer::Cancelled(marks), ())
    });
    Child::end(&call, marks).map(drop)
}

async fn redrive(child: &Child, random: &mut fastrand::Rng) -> Result<(), Over> {
    let Some(admin) = child.queue.admin() else {
        return Ok(());
    };
    let mut ids = dead(child, admin).await?;
    ids.truncate(random.usize(..40));
    let call = child.begin(Verb::Redrive(ids.clone()));
    let count = admin.redrive(call.now, &ids).await;
    Child::end(&call, count.map(|count| (Answer::Count(count), ()))).map(drop)
}

/// Forgets what is dead, up to a page of it.
pub(super) async fn purge(child: &Child) -> Result<(), Over> {
    let Some(admin) = child.queue.admin() else {
        return Ok(());
    };
    let ids = dead(child, admin).await?;
    let call = child.begin(Verb::Purge(ids.clone()));
    let count = admin.purge(call.now, &ids).await;
    Child::end(&call, count.map(|count| (Answer::Count(count), ()))).map(drop)
}

async fn dead(child: &Child, admin: &dyn Administration) -> Result<Vec<RequestId>, Over> {
    let listed = admin
        .list(child.queue.now(), &List::new(State::Dead))
        .await
        .map_err(|error| Child::failed(&error))?;
    Ok(listed.iter().map(|entry| entry.id).collect())
}
