#!/bin/sh
# Plays an OCI runtime: notes how it is called in `calls` beside itself, and starts a sleep where an engine
# would start a container. A file `fail-VERB` holds the words to fail with, `hang-VERB` has the verb hang, and
# `die-VERB` be killed; with `shim-dies` a container is made, and the shim killed before it can know. What `say-VERB`
# holds is written to standard error first, and `log-VERB` is added to the log before the verb fails.
dir=$(dirname "$0")
echo "$*" >>"$dir/calls"
for word; do
    case $before in
    --log) log=$word ;;
    --pid-file) pid_file=$word ;;
    --process) cp "$word" "$dir/process" ;;
    esac
    case $word in
    create | start | exec | state | kill | pause | resume | update | delete | checkpoint | restore | ps)
        verb=${verb:-$word}
        ;;
    esac
    before=$word
done
env >"$dir/env-$verb"
pwd >"$dir/cwd-$verb"
[ ! -e "$dir/say-$verb" ] || cat "$dir/say-$verb" >&2
if [ -e "$dir/hang-$verb" ]; then
    echo $$ >"$dir/hangs"
    exec sleep 1000
fi
[ ! -e "$dir/die-$verb" ] || kill -s KILL $$
if [ -e "$dir/log-$verb" ]; then
    cat "$dir/log-$verb" >>"$log"
    exit 1
fi
if [ -e "$dir/fail-$verb" ]; then
    printf '{"level":"error","msg":"%s"}\n' "$(cat "$dir/fail-$verb")" >>"$log"
    exit 1
fi
case $verb in
create | exec | restore)
    sleep 1000 &
    [ $verb = exec ] || echo $! >"$dir/init"
    [ ! -e "$dir/shim-dies" ] || kill -s KILL $PPID
    # Without an end of line, which Go's shim does not take.
    printf %s $! >"$pid_file"
    ;;
state) cat "$dir/state" 2>/dev/null ;;
delete) [ ! -e "$dir/shim-dies" ] || kill -s KILL "$(cat "$dir/init")" ;;
kill)
    init=$(cat "$dir/init")
    # Once it has ended its number may be another's. Before its program runs it has the name of this one.
    case $(cat "/proc/$init/comm" 2>/dev/null) in
    sleep | engine) kill -s "$before" "$init" ;;
    *) echo "no such process" >&2 && exit 1 ;;
    esac
    ;;
update) cat >"$dir/resources" ;;
ps) echo "[$(cat "$dir/init")]" ;;
esac
