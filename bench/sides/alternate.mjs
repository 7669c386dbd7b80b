/**
 * Steps of all children alternately, so that a slow minute of the machine affects all of them alike. A child that fails is left out from
 * then on. Returns { secondsBest, secondsMedian, last } or { failure } for each of them.
 */
export async function alternate(children, { warmUps = 3, repeats = 7 } = {}) {
  const runs = children.map(() => ({ answers: [], failure: null }));
  for (let round = 0; round < warmUps + repeats; round++) {
    for (const [index, child] of children.entries()) {
      const run = runs[index];
      if (run.failure !== null) continue;
      try {
        run.answers.push(await child.ask({ step: {} }));
      } catch (error) {
        run.failure = error.message;
      }
    }
  }
  return runs.map(({ answers, failure }) =>
    failure === null ? summary(answers.slice(warmUps)) : { failure },
  );
}

function summary(answers) {
  const seconds = answers.map((answer) => answer.seconds).sort((a, b) => a - b);
  return {
    secondsBest: seconds[0],
    secondsMedian: seconds[seconds.length >> 1],
    last: answers[answers.length - 1],
  };
}
