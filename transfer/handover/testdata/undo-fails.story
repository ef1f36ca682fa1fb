# source
- offer
Offer
- send-offer
> offer
> entry netns/state
- enter-offered
- enter-running
- begin
Begin
- send-build
> build
- precopy
Precopy ["files/big"]
> entry files/big
- enter-frozen
- freeze
Freeze
> entry checkpoint/pages.img
- send-prepare
> prepare
- keep
Keep
- enter-resumed
- resume
Resume
- send-abort
- finish

*handover.FailedError: migrate: restore: the destination gave up: restore: out of luck
the service is running on this host as before
the copy: runs

# destination
- check
Store netns/state 5 "state"
Check {"what":"a service"}
- send-ready
> ready
- enter-agreed
- enter-building
- begin
Begin
- build
Build
- send-built
> built
- store
Store files/big -1 "what changes rarely"
- store
Store checkpoint/pages.img -1 "memory"
- prepare
Prepare {"images":1} fails: out of luck
- enter-aborted
- send-abort
> abort
- undo
Undo fails: out of luck

*handover.FailedError: migrate: restore: out of luck
not everything could be removed again from this host: out of luck
  hint: see to that, then run: nsmigrate recover ID
the copy: partial
