//! `torture`: proves on this machine's disk that nothing answered is lost.

use std::{path::PathBuf, time::Duration};

use batchyard::torture::{
    Backend, Life,
    cycle::{self, Plan},
    figures::Figure,
    live,
    report::Report,
};
use bytesize::ByteSize;
use clap::{Args, ValueHint};

use super::{
    args::own_program,
    child::die_with_parent,
    exit::{Exit, Failure},
    output::{Steps, print, print_json, say},
    scratch,
    stop::Stop,
    store,
    table::Table,
};

/// Options of `torture`.
#[derive(Debug, Args)]
#[command(
    after_help = "Example: batchyard torture --dir /mnt/disk --minutes 10\n\
    A program works on a store as hard as it can and is killed at random moments, also while it recovers; each time \
    all that it was promised is compared with what is there. Everything lies in a folder of its own below --dir, which is removed \
    at the end, unless something is not as promised: then the store is kept, and the exit code is 8."
)]
pub(super) struct TortureArgs {
    /// The folder on the disk to try
    #[arg(long, value_name = "DIR", default_value = ".", value_hint = ValueHint::DirPath)]
    dir: PathBuf,
    /// How long to go on, such as 10 or 0.5; up to a year
    #[arg(long, value_name = "N", default_value = "1", value_parser = minutes, allow_hyphen_values = true)]
    minutes: Duration,
    /// Only this backend [default: each in turn]
    #[arg(long, value_name = "BACKEND")]
    backend: Option<store::Backend>,
    /// Also cut the power, of a second store each: on a file system in memory that forgets what was not synced, or
    /// keeps torn parts of it (FUSE; built with the feature fuse)
    #[arg(long)]
    power: bool,
    /// What is done follows from this number, but not the moments at which the machine does it [default: another one each time]
    #[arg(long, value_name = "NUMBER")]
    seed: Option<u64>,
    /// Also fail (exit 1) if memory, file descriptors, disk use or the time to open grew; give it at least ten minutes
    #[arg(long)]
    soak: bool,
    /// Print a line of JSON
    #[arg(long)]
    json: bool,
    /// What the program is started again for: to be killed
    #[arg(long, hide = true, value_name = "JSON")]
    child: Option<String>,
}

/// Tortures, and prints the verdict.
pub(super) async fn torture(args: TortureArgs) -> Result<Exit, Failure> {
    if let Some(life) = &args.child {
        die_with_parent();
        live(&parse(life)?).await?;
        return Ok(Exit::Ok);
    }
    if args.power {
        cycle::power_loss_available()
            .map_err(|why| Failure::new(Exit::Usage, format!("no power can be cut here: {why}")))?;
    }
    let mut stop = Stop::new()?;
    let folder = scratch::folder(&args.dir, "batchyard-torture-")?;
    let plan = Plan {
        folder: folder.path().to_owned(),
        program: own_program()?,
        backends: match args.backend {
            Some(backend) => vec![known(backend)?],
            None => Backend::ALL.to_vec(),
        },
        power: args.power,
        duration: args.minutes,
        seed: args.seed.unwrap_or_else(|| fastrand::u64(..1 << 32)),
    };
    say(&format!("seed {}, in {}", plan.seed, plan.folder.display()));
    let mut interrupted = None;
    let stopped = async { interrupted = Some(stop.asked().await) };
    let steps = Steps::of_time();
    let all = plan.duration.as_secs();
    let tell = |report: &Report| {
        let line = report.verdict();
        let seconds = Duration::from_secs_f64(report.seconds).as_secs();
        steps.set(seconds, all, &line, &line);
    };
    let report = cycle::run(&plan, stopped, tell).await;
    drop(steps);
    let folder = folder.keep();
    if report.as_ref().map_or(true, |report| report.kept.is_none()) {
        scratch::remove(&folder)?;
    }
    let report = report?;
    show(&args, &report)?;
    if report.held && report.requests == 0 && interrupted.is_none() {
        let why = "nothing was acknowledged, so nothing is shown: is there room on the disk, and time enough?";
        return Err(Failure::new(Exit::Failure, why));
    }
    Ok(match interrupted {
        _ if !report.held => Exit::Damaged,
        Some(exit) => exit,
        None if args.soak && !report.is_flat() => Exit::Failure,
        None => Exit::Ok,
    })
}

fn show(args: &TortureArgs, report: &Report) -> Result<(), Failure> {
    for damage in &report.damage {
        say(&damage.to_string());
    }
    if let Some(path) = &report.kept {
        let path = path.display();
        say(&format!(
            "the store is kept in {path}; --seed {} makes the same choices again",
            report.seed
        ));
    }
    if args.json {
        return Ok(print_json(report)?);
    }
    let mut text = String::new();
    for store in report
        .stores
        .iter()
        .filter(|store| !store.figures.is_empty())
    {
        let mut table = Table::new(
            &[&store.name, "first quarter", "last quarter", "at most", ""],
            1,
        );
        for figure in &store.figures {
            table.row(row(figure));
        }
        text = format!("{text}{}\n", table.text());
    }
    print(format!("{text}{}\n", report.verdict()).as_bytes())?;
    Ok(())
}

fn row(figure: &Figure) -> Vec<String> {
    let shown = |value: u64| match figure.unit {
        "bytes" => ByteSize(value).display().iec().to_string(),
        "microseconds" => format!("{} ms", value / 1000),
        _ => value.to_string(),
    };
    let flat = if figure.is_flat { "flat" } else { "GROWN" };
    vec![
        figure.name.to_owned(),
        shown(figure.first),
        shown(figure.last),
        shown(figure.bound),
        flat.to_owned(),
    ]
}

fn known(backend: store::Backend) -> Result<Backend, Failure> {
    let name = backend.to_string();
    let found = Backend::ALL.iter().find(|known| known.to_string() == name);
    found.copied().ok_or_else(|| {
        let text = format!("this batchyard was built without the feature {name}");
        Failure::new(Exit::Usage, text)
    })
}

fn parse(life: &str) -> Result<Life, Failure> {
    serde_json::from_str(life).map_err(|error| {
        let text = format!("--child is for this program itself: {error}");
        Failure::new(Exit::Usage, text)
    })
}

fn minutes(text: &str) -> Result<Duration, String> {
    let number = text.parse().ok();
    let number = number.filter(|number: &f64| *number > 0.0 && *number <= MOST_MINUTES);
    let duration = number.map(|number| Duration::from_secs_f64(number * 60.0));
    duration.ok_or_else(|| {
        format!("a number of minutes above 0 and up to {MOST_MINUTES} is needed, such as 10 or 0.5")
    })
}

/// A year.
const MOST_MINUTES: f64 = 525_600.0;
/// What is in the log: the children say the rest, and FUSE says more than anybody needs.
pub(super) const LOG: &str = "warn,fuser=off";
