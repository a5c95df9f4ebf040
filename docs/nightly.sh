#!/usr/bin/env bash
# A line's night as one file, for cron or any scheduler:
#
#   15 22 * * *  cd /srv/line && LINE=s3://plant/line LAKE=s3://plant/tyres bash nightly.sh
#
# It looks at the day's pictures (LINE/2026-11-26/...), fills the queue that people answer by day (`tyre review`), and
# learns from what they have answered since: the next data version, a challenger, the gate. What it needs to know lies
# in this folder: days/, answers/, and `version`, the newest data version. Mind its exit code: 5 means look at the line.
set -euo pipefail
LINE=${LINE:?where the pictures of a day arrive} LAKE=${LAKE:?where the data versions lie}
MODEL=${MODEL:-tyre-defects} DAY=${DAY:-$(date +%F)} BUDGET=${BUDGET:-300}
champion=models:/$MODEL@champion day=days/$DAY alarm=0
mkdir -p "$day" answers
[ -e version ] || echo v1 > version

step() { # runs a command, of which some exit codes are news and no failure
    local fine=$1 code=0
    shift
    "$@" || code=$?
    [ "$code" -eq 5 ] && alarm=5
    [[ " 0 $fine " == *" $code "* ]] || exit "$code"
}

step 3 tyre predict model="$champion" input="$LINE/$DAY" output="$day/predictions.parquet" # 3: some are unreadable
step 5 tyre watch model="$champion" input="$LINE/$DAY" output="$day/watch.html"
step "" tyre select predictions="$day/predictions.parquet" budget="$BUDGET" output="$day/queue.parquet"

if [ -n "$(find answers -name '*.jsonl' -newer version)" ]; then # people have answered since the last version
    step 5 tyre rates queue="'days/*/queue.parquet'" answers=answers
    now=$(cat version)
    next=v$((${now#v} + 1))
    step "" tyre accept answers=answers queue="'days/*/queue.parquet'" from="$LAKE/$now" to="$LAKE/$next"
    echo "$next" > version.new
    step "" tyre train data.root="$LAKE/$next" logger.registered_model="$MODEL"
    mv version.new version # only now: a night that breaks off before is done again
    step 4 tyre promote model="$MODEL" # 4: the challenger is no better
fi
exit "$alarm"
