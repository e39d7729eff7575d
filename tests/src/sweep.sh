# Waits until standard input closes (its other end is held by the process that runs the servers), then ends every
# process whose working directory lies in $1 and removes their shared memory and the directory.
# Working directories tell servers apart from everything else: a postmaster is nobody's child and clobbers its environment.
directory=$1
trap '' HUP INT TERM

servers() {
    find /proc -maxdepth 2 -name cwd \( -lname "$directory" -o -lname "$directory/*" -o -lname "$directory *" \) 2>/dev/null |
        cut -d/ -f3
}

while read -r _; do :; done

tries=200
while running=$(servers) && [ -n "$running" ] && [ "$tries" -gt 0 ]; do
    kill -KILL $running 2>/dev/null
    tries=$((tries - 1))
    sleep 0.02
done

# A killed postmaster leaves its System V segment; the seventh line of its pid file ends with the segment's number.
find "$directory" -name postmaster.pid -exec sed -n '7s/.* //p' {} \; 2>/dev/null |
    while read -r segment; do ipcrm -m "$segment" 2>/dev/null; done
# libfaketime's, which it removes at the end of its process, unless that was killed.
for memory in /dev/shm/faketime_shm_*; do
    process=${memory##*_}
    [ -e "$memory" ] && [ ! -d "/proc/$process" ] && rm -f "$memory" "/dev/shm/sem.faketime_sem_$process"
done
rm -rf "$directory"
