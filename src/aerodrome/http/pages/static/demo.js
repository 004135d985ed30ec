// The code comes behind the # of the address, which is sent to nobody and in no log; from here it goes in a form, once.
"use strict";

const form = document.getElementById("demo-code");
const code = location.hash.slice(1);
if (code) history.replaceState(null, "", location.pathname);
if (form && code) {
  form.elements.code.value = code;
  form.submit();
}
