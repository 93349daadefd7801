//! Writes the seeds of each target to `corpus/TARGET/`: bytes of the files of a store that is made
//! for them, and messages.

use std::path::Path;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus");
    let store = std::env::temp_dir().join(format!("untorn-seeds-{}", std::process::id()));
    std::fs::create_dir(&store)?;
    let made = untorn::fuzzing::seeds(&store);
    std::fs::remove_dir_all(&store)?;
    for (target, seeds) in made? {
        let folder = corpus.join(target);
        std::fs::create_dir_all(&folder)?;
        for (number, seed) in seeds.iter().enumerate() {
            std::fs::write(folder.join(format!("seed-{number:03}")), seed)?;
        }
        println!("{target}: {} seeds", seeds.len());
    }
    Ok(())
}
